"""In what runs differ: settings by dotted name, iteration by iteration, and who made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from handbook_ext.reports.settings_diff import (
    LONGEST,
    differences_of,
    fact_differences,
    facts_of,
    in_words,
    read_manifests,
    settings_of,
)

Placed = tuple[str, dict[str, Any]]


def at(place: str, stage: str, commit: str = "a" * 40, dirty: bool = False, **settings: Any) -> Placed:
    """The manifest of a stage in a folder of a run."""
    made = {"stage": stage, "counts": {}, "sha256": "0", "files": {}, "inputs": {}, "key": "", "policy": None}
    made |= {"settings": {"stage": stage} | settings, "code": {"commit": commit, "dirty": dirty}}
    made |= {"packages": {"torch": "2.13.0"}, "hardware": {"cpu": "x", "gpus": ["H"]}}
    return place, made | {"launch": {"launcher": "plain" if stage == "select" else "accelerate"}}


def rows(*runs: list[Placed]) -> dict[str, list[str]]:
    found = differences_of({str(number): settings_of(run) for number, run in enumerate(runs)})
    return {row["name"]: row["values"] for row in found}


def trained(*alphas: float, **more: Any) -> list[Placed]:
    """An iteration of each alpha."""
    return [at(f"iter{n}", "train", seed=1, train={"alpha": alpha, "beta": 0.1}, **more) for n, alpha in enumerate(alphas)]


def test_only_what_differs_is_told_and_iterations_apart_where_they_do() -> None:
    assert rows(trained(0.0, 0.02, 0.02), trained(0.0, 0.0, 0.0)) == {"train.alpha": ["iter0: 0.0, iter1 to iter2: 0.02", "0.0"]}
    assert rows(trained(0.0), trained(0.0)) == {}


def test_a_stage_that_a_run_lacks_has_no_settings_there() -> None:
    ranked = [at("iter0", "rank", rank={"ranker": "pairrm", "judge": {"model": "m"}})]
    assert rows(trained(0.1), [*trained(0.1), *ranked]) == {"stages": ["train", "rank, train"], "rank.ranker": ["-", "pairrm"]}
    one, other = ([at("iter0", "rank", rank={"ranker": "pairrm"} | more)] for more in ({}, {"judge": {"model": "m"}}))
    assert rows(one, other) == {"rank.judge.model": ["-", "m"]}


def test_a_section_that_a_run_lacks_is_told_by_its_chief_setting_and_what_else_differs() -> None:
    def ranked(ranker: str, batch: int) -> Placed:
        return at("iter0", "rank", rank={"ranker": ranker, "batch_size": batch, "output": None})

    alone = rows(trained(0.1), [*trained(0.1), ranked("oracle", 32)])
    assert alone == {"stages": ["train", "rank, train"], "rank.ranker": ["-", "oracle"]}
    two = rows(trained(0.1), [*trained(0.1), ranked("oracle", 32)], [*trained(0.1), ranked("oracle", 64)])
    assert two["rank.batch_size"] == ["-", "32", "64"] and "rank.output" not in two


def test_what_follows_from_other_settings_is_no_difference() -> None:
    derived = {"inputs": {"rows": "a"}, "limits": {"max_length": 1}, "recipe": "a", "policy": "b", "tolerance": 1.0, "sizes": 2}
    assert rows(trained(0.1, **derived), trained(0.1)) == {}


def test_names_stand_in_the_order_of_a_recipe_and_the_judge_apart_from_the_ranker() -> None:
    def judged(ranker: str, judge: str, temperature: float) -> list[Placed]:
        ranked = at("iter0", "rank", rank={"ranker": ranker})
        return [ranked, at("iter0", "evaluate", rank={"ranker": judge}, evaluate={"temperature": temperature})]

    sft = [at("data", "data", data={"rows": 2}, seed=2), at("sft", "sft", seed=2, sft={"num_train_epochs": 1})]
    found = rows(judged("a", "a", 0.0), [*judged("b", "a", 0.7), *sft])
    assert list(found) == ["seed", "data.rows", "sft.num_train_epochs", "rank.ranker", "evaluate.temperature"]
    assert rows(judged("a", "a", 0.0), judged("a", "c", 0.0)) == {"evaluate.rank.ranker": ["a", "c"]}


def test_sets_of_prompts_and_single_values_are_told_apart() -> None:
    def graded(rows: int, model: str) -> list[Placed]:
        asked = [at("iter0", "grade", set=name, judge={"model": model}, rows=count) for name, count in (("a", rows), ("b", 3))]
        return [*asked, at("sft", "data", rows=rows)]

    assert rows(graded(1, "m"), graded(2, "m")) == {"data.rows": ["1", "2"], "benchmarks.a.rows": ["1", "2"]}
    assert list(rows(graded(1, "m"), graded(1, "n"))) == ["benchmarks.a.judge.model", "benchmarks.b.judge.model"]


def test_values_are_written_as_in_a_recipe() -> None:
    assert in_words({"iter10": True, "iter2": True, "sft": None}) == "sft: null, iter2 to iter10: true"
    assert in_words({"sft": "word"}) == "word"
    assert in_words({"sft": [1, 2]}) == "[1, 2]"
    assert in_words({}) == "-"
    assert len(in_words({"sft": "x" * 500})) == LONGEST


def test_code_packages_and_machines_are_told_with_all_their_values() -> None:
    ours = [at("iter0", "train"), at("iter1", "train", "b" * 40, dirty=True), at("iter1", "select")]
    found = facts_of(ours)
    assert found["code commit"] == "aaaaaaaaaaaa, bbbbbbbbbbbb with uncommitted changes"
    assert (found["packages.torch"], found["hardware.gpus"], found["launch.launcher"]) == ("2.13.0", '["H"]', "accelerate")
    assert fact_differences({"a": found, "b": facts_of([at("iter0", "train")])}) == [
        {"name": "code commit", "values": ["aaaaaaaaaaaa, bbbbbbbbbbbb with uncommitted changes", "aaaaaaaaaaaa"]}
    ]


def test_manifests_of_files_folders_and_sets_are_found_but_for_those_that_made_no_policy(tmp_path: Path) -> None:
    kept = {"iter1/policy": "train", "iter1/pairs.jsonl": "select", "iter1/eval.json": "evaluate"}
    for path, stage in {**kept, "iter1/alpaca/eval.json": "grade", "report": "report", "start/policy": "checkpoint"}.items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(at("", stage)[1])
        if place.suffix:
            place.write_text("")
            place.with_name(place.stem + ".manifest.json").write_text(text)
        else:
            place.mkdir()
            (place / "manifest.json").write_text(text)
    (tmp_path / "iter1" / "gone.manifest.json").write_text(json.dumps(at("", "rank")[1]))
    assert sorted((place, each["stage"]) for place, each in read_manifests(tmp_path)) == [
        ("iter1", "evaluate"), ("iter1", "grade"), ("iter1", "select"), ("iter1", "train"),
    ]  # fmt: skip
