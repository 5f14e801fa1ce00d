"""The numbers of a report, from runs made by hand: what is read of each file, and what is compared with what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.objectives.metrics import Scores
from handbook_ext.recipes.settings import FITTED
from handbook_ext.reports.evaluations import Evaluator, judged_by_all, read_evaluation, read_json
from handbook_ext.reports.run_report import (
    FinishedRun,
    compare_recipes,
    group_seeds,
    judged_by,
    read_pairs,
    read_run,
    read_stages,
    summarise,
    summarise_recipe,
)
from tests.reports.written_run import make_run, write_evaluation

FEW = {"resamples": 20, "confidence": 0.9}


def scores(*rewards: float, temperature: float = 0.0, prompts: str = "abcdef") -> Scores:
    return Scores(tuple(prompts[: len(rewards)]), np.array(rewards), np.full(len(rewards), 3.0), temperature)


def finished(seed: int = 1, recipe: str = "tiny-selm", **changes: Any) -> FinishedRun:
    """A run whose rewards are 0, then 1, then 2, plus a tenth of the seed, under two decodings of two and three prompts."""
    policies = {
        name: {
            "greedy": scores(*[mean + 0.1 * seed] * 2),
            "sampled": scores(*[mean + 0.1 * seed] * 3, temperature=0.7),
        }
        for mean, name in enumerate(("sft", "iter1", "iter2"))
    }
    steps = {name: [{"step": n, "loss": 1.0 / n} for n in (1, 2, 3)] for name in ("iter1", "iter2")}
    run = FinishedRun(
        Path(f"runs/{recipe}-{seed}"), recipe, seed, "oracle", "", policies, steps, stages=[{"stage": "train"}],
        pairs=[{"pairs": 8}], health=[{"kl": 2.0}], skipped=[],
    )  # fmt: skip
    return replace(run, **changes)


def test_the_numbers_of_a_recipe_are_those_of_its_seeds() -> None:
    found = summarise_recipe([finished(1), finished(2)], **FEW)
    table = found.pop("policies")
    assert found == {
        "recipe": "tiny-selm", "start": "sft", "folders": ["runs/tiny-selm-1", "runs/tiny-selm-2"], "seeds": [1, 2],
        "left_out": [[], []], "unjudged": [0, 0], "prompts": [2, 2], "temperatures": {"greedy": 0.0, "sampled": 0.7},
        "stages": [{"seed": 1, "stage": "train"}, {"seed": 2, "stage": "train"}],
        "pairs": [{"seed": 1, "pairs": 8}, {"seed": 2, "pairs": 8}], "health": [{"seed": 1, "kl": 2.0}, {"seed": 2, "kl": 2.0}],
        "training": [
            {"seed": seed, "iteration": name, "first": {"step": 1, "loss": 1.0}, "last": {"step": 3, "loss": 1.0 / 3}}
            for seed in (1, 2)
            for name in ("iter1", "iter2")
        ],
    }  # fmt: skip
    assert [row["policy"] for row in table] == ["sft", "iter1", "iter2"]
    assert [row["sampled"]["reward"].value for row in table] == pytest.approx([0.15, 1.15, 2.15])
    assert table[2]["greedy"]["reward_by_seed"] == pytest.approx([2.1, 2.2])
    assert table[2]["sampled"]["vs_start"]["gain"].value == pytest.approx(2.0)
    assert table[2]["sampled"]["vs_previous"]["gain"].value == pytest.approx(1.0)


def test_policies_that_a_seed_lacks_or_skipped_are_left_out_of_all() -> None:
    whole, part = finished(1, skipped=["iter3"]), finished(2)
    del part.policies["iter2"]
    found = summarise_recipe([whole, part], **FEW)
    assert [row["policy"] for row in found["policies"]] == ["sft", "iter1"]
    assert found["left_out"] == [["iter3"], ["iter2", "iter3"]]


def test_runs_that_are_no_seeds_of_one_recipe_are_named() -> None:
    first, other = finished(1), finished(2)
    start = other.policies.pop("sft")
    moved = replace(other, policies={"start": start, **other.policies})
    for runs in ([first, finished(1)], [first, finished(2, "tiny-dpo")], [first, moved]):
        with pytest.raises(UserError, match="not seeds of one recipe") as caught:
            summarise_recipe(runs, **FEW)
        assert str(caught.value).startswith(f"{first.folder} (tiny-selm, seed 1), {runs[1].folder} ({runs[1].recipe}, seed ")


def test_seeds_are_grouped_by_recipe_in_their_order() -> None:
    runs = [finished(1, "b"), finished(1, "a"), finished(2, "b")]
    assert group_seeds(runs) == [[runs[0], runs[2]], [runs[1]]]


def test_recipes_are_compared_at_the_last_policy_of_both_on_shared_seeds() -> None:
    ours, theirs = [finished(1), finished(2)], [finished(2, "tiny-dpo"), finished(3, "tiny-dpo")]
    del theirs[0].policies["iter2"]
    found = compare_recipes(ours, theirs, **FEW)
    decodings = found.pop("decodings")
    assert found == {"recipe": "tiny-dpo", "policy": ["iter1"], "seeds": 1}
    assert {name: each["win_rate"].value for name, each in decodings.items()} == {"greedy": 0.5, "sampled": 0.5}
    better = finished(2, "tiny-dpo")
    better.policies["iter2"]["greedy"] = scores(2.0, 3.0)
    gain = compare_recipes(ours, [better], **FEW)["decodings"]["greedy"]
    assert (gain["win_rate"].value, gain["gain"].value) == (0.5, pytest.approx(2.2 - 2.5))


@pytest.mark.parametrize("change", ["seed", "ranker_id", "prompts"])
def test_recipes_that_share_no_seed_judge_or_prompts_are_not_compared(change: str) -> None:
    other = finished(2 if change == "seed" else 1, "tiny-dpo", ranker_id="x" if change == "ranker_id" else "")
    if change == "prompts":
        other.policies["iter2"] = {name: replace(each, prompt_ids=("z",)) for name, each in other.policies["iter2"].items()}
    found = compare_recipes([finished(1)], [other], **FEW)
    assert (found["policy"], found["seeds"], found["decodings"]) == (["iter2"], 0, {})


def test_without_a_policy_of_the_same_name_nothing_is_compared() -> None:
    other = finished(1, "tiny-dpo", policies={"start": finished().policies["sft"]})
    assert compare_recipes([finished(1)], [other], **FEW)["policy"] == []


def test_a_report_says_who_judged_and_shows_samples_first() -> None:
    found = summarise([[finished(1)], [finished(1, "tiny-dpo")]], title="T", **FEW)
    assert [one["recipe"] for one in found.pop("recipes")] == ["tiny-selm", "tiny-dpo"]
    assert [one["recipe"] for one in found.pop("beside")] == ["tiny-dpo"]
    assert found == {"title": "T", "ranker": "oracle", "reward": "true reward", "primary": "sampled", **FEW}
    greedy = finished(1, policies={"sft": {"greedy": scores(1.0)}}, history={}, ranker="reward_model", ranker_id="rm")
    found = summarise([[greedy]], title="T", **FEW)
    assert (found["reward"], found["primary"], found["ranker"]) == ("reward (by reward_model)", "greedy", "reward_model")


def test_rankers_are_equal_by_kind_identity_and_temperature_but_seeds_fit_their_own() -> None:
    assert judged_by(finished()) == "oracle, greedy at 0, sampled at 0.7"
    named = finished(ranker="reward_model", ranker_id="some/model, 512 tokens")
    assert judged_by(named) == "reward_model (some/model, 512 tokens), greedy at 0, sampled at 0.7"
    fitted = [finished(seed, ranker="reward_model", ranker_id=f"{FITTED}{seed}") for seed in (1, 2)]
    assert judged_by(fitted[0]) == judged_by(fitted[1])
    assert f"({FITTED.strip()})" in judged_by(fitted[0])
    summarise([fitted], title="T", **FEW)
    with pytest.raises(UserError, match=r"tiny-dpo-1: is judged by reward_model \(some.*, but runs/tiny-selm-1 by oracle"):
        summarise([[finished()], [replace(named, folder=Path("runs/tiny-dpo-1"))]], title="T", **FEW)


def test_an_evaluation_is_sorted_by_prompt(tmp_path: Path) -> None:
    rows = [{"prompt_id": name, "reward": reward, "tokens": 2 * reward} for name, reward in (("b", 1.0), ("c", 3.0), ("a", 2.0))]
    content = {"seed": 7, "ranker": "oracle", "judge": "j", "decodings": {"sampled": {"temperature": 0.7, "rows": rows}}}
    (tmp_path / "eval.json").write_text(json.dumps(content))
    found, evaluator = read_evaluation(tmp_path / "eval.json")
    assert evaluator == Evaluator(7, "oracle", "j")
    one = found.pop("sampled")
    assert found == {}
    assert (one.prompt_ids, one.temperature) == (("a", "b", "c"), 0.7)
    assert (one.rewards.tolist(), one.tokens.tolist()) == ([2.0, 1.0, 3.0], [4.0, 2.0, 6.0])


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_what_holds_no_object_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a.json: cannot be read as JSON .*; delete it and make its stage again"):
        read_json(path)
    path.write_text(text)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(path)


def test_shares_of_pairs_are_of_on_policy_sides_and_of_swapped_offline_labels(tmp_path: Path) -> None:
    """Four pairs: one chosen and three rejected are on policy; two of the three offline labels are swapped."""
    lines = [("on_policy", "on_policy", False), ("offline", "on_policy", True), ("offline", "offline", True)]
    rows = [{"chosen_origin": a, "rejected_origin": b, "swapped": c} for a, b, c in lines]
    rows.append({"chosen_origin": "offline", "rejected_origin": "on_policy"})
    path = tmp_path / "iter3" / "pairs.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {"iteration": "iter3", "pairs": 4, "chosen": 0.25, "rejected": 0.75, "swapped": pytest.approx(2 / 3)}
    assert read_pairs(path) == expected
    path.write_text(json.dumps(rows[0]) + "\n")
    assert read_pairs(path) == {"iteration": "iter3", "pairs": 1, "chosen": 1.0, "rejected": 1.0, "swapped": 0.0}
    path.write_text("")
    assert read_pairs(path) == {"iteration": "iter3", "pairs": 0, "chosen": 0.0, "rejected": 0.0, "swapped": 0.0}
    path.write_text(json.dumps(rows[0]) + "\n{\n")
    with pytest.raises(UserError, match=r"pairs.jsonl:2: is not a pair .*; delete the file, select again"):
        read_pairs(path)


def test_stages_are_in_the_order_of_the_loop_with_what_their_manifests_say(tmp_path: Path) -> None:
    folder = tmp_path / "iter1"
    for name in ("policy", "logprobs", "other"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text("{}")
    manifest = {
        "stage": "select", "counts": {"in": 9, "out": 8, "dropped": {"equal": 1}}, "seconds": 2.5, "hardware": {"cores": 2},
        "packages": {"torch": "2"}, "seed": 3, "code": {"commit": "c0ffee", "dirty": True}, "inputs": {},
    }  # fmt: skip
    for name in ("eval", "pairs", "rankings", "completions", "aside"):
        (folder / f"{name}.manifest.json").write_text(json.dumps(manifest if name == "pairs" else {"counts": None, "code": None}))
    found = read_stages(folder)
    order = ["completions", "rankings", "logprobs", "pairs", "policy", "eval", "aside", "other"]
    assert [row["artifact"] for row in found] == order
    assert found[3] == {
        "iteration": "iter1", "artifact": "pairs", "stage": "select", "in": 9, "out": 8, "dropped": {"equal": 1}, "seconds": 2.5,
        "hardware": {"cores": 2}, "packages": {"torch": "2"}, "seed": 3, "commit": "c0ffee", "dirty": True,
    }  # fmt: skip
    silent = dict.fromkeys(("in", "out", "dropped", "seconds", "hardware", "packages", "seed"))
    assert found[0] == {"iteration": "iter1", "artifact": "completions", "stage": "completions", **silent}


def test_a_run_is_read_with_logs_pairs_health_and_stages(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", iterations=2)
    (folder / "iter0" / "policy" / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1}, {"loss": 1.0}]}))
    found = read_run(folder)
    assert (found.folder, found.recipe, found.seed, found.ranker, found.ranker_id) == (folder, "tiny-selm", 1, "oracle", "")
    # Lines of a log that are no steps do not count, and an iteration without steps has no history.
    assert {name: [row["step"] for row in rows] for name, rows in found.history.items()} == {"iter1": [1, 2]}
    assert [row["iteration"] for row in found.pairs] == ["iter0", "iter1"]
    assert [(row["iteration"], row["pairs"]) for row in found.health] == [("iter0", 2.0), ("iter1", 2.0)]
    assert [(row["iteration"], row["artifact"]) for row in found.stages] == [
        ("sft", "policy"), ("iter0", "pairs"), ("iter0", "policy"), ("iter1", "pairs"), ("iter1", "policy")
    ]  # fmt: skip
    assert found.skipped == []


def test_a_run_may_start_from_a_checkpoint_and_lack_logs_and_manifests(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", iterations=2, start="start")
    for name in ("policy/trainer_state.json", "pairs.jsonl", "pairs.manifest.json"):
        (folder / "iter0" / name).unlink()
    (folder / "iter").mkdir()
    write_evaluation(folder / "iter1x", 0.5)
    found = read_run(folder)
    assert list(found.policies) == ["start", "iter0", "iter1"]
    assert ([*found.history], len(found.pairs), len(found.health)) == (["iter1"], 1, 1)


def test_an_evaluation_by_another_ranker_says_both(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", iterations=1)
    content = json.loads((folder / "iter0" / "eval.json").read_text())
    (folder / "iter0" / "eval.json").write_text(json.dumps(content | {"judge": "j"}))
    with pytest.raises(UserError, match=r"is \(1, 'oracle', 'j'\), in sft \(1, 'oracle', ''\); evaluate again"):
        read_run(folder)


def test_a_prompt_that_one_policy_lacks_a_verdict_for_counts_for_none() -> None:
    ids, tokens = ("a", "b", "c"), np.array([1.0, 2.0, 3.0])
    both = {
        "start": {"greedy": Scores(ids, np.array([1.0, np.nan, 3.0]), tokens)},
        "iter1": {"greedy": Scores(ids, np.array([4.0, 5.0, np.nan]), tokens)},
    }
    found, dropped = judged_by_all(both)
    assert dropped == 2
    for one, reward in zip(found.values(), (1.0, 4.0), strict=True):
        kept = one["greedy"]
        assert (kept.prompt_ids, kept.rewards.tolist(), kept.tokens.tolist()) == (("a",), [reward], [1.0])
    nobody = both | {"iter2": {"greedy": Scores(ids, np.array([np.nan, 1.0, 1.0]), tokens)}}
    with pytest.raises(UserError, match="decoding greedy: no prompt has a readable verdict for every policy"):
        judged_by_all(nobody)
    assert judged_by_all({}) == ({}, 0)
