"""SeRA through the Makefile's own commands: counts, the score store, deleted weights, other data sets, limits, tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workspace import SERA, Workspace

PAIRS = 48


@pytest.fixture
def finished(sera: Workspace) -> Workspace:
    return sera


@pytest.fixture
def copy(sera: Workspace, copy_of: Callable[[Workspace, str], Workspace]) -> Workspace:
    """The finished run, to be spoilt."""
    return copy_of(sera, SERA)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairs_of(workspace: Workspace, iteration: int) -> list[dict[str, Any]]:
    return rows(workspace.folder / f"runs/mine-micro/iter{iteration}/pairs.jsonl")


def manifest_of(workspace: Workspace, name: str) -> dict[str, Any]:
    return dict(json.loads((workspace.folder / "runs/mine-micro" / name).read_text()))


@pytest.mark.parametrize("iteration", [2, 3])
def test_k_offline_and_the_rest_bootstrapped_each_with_margin_and_origin(finished: Workspace, iteration: int) -> None:
    pairs = pairs_of(finished, iteration)
    origins = Counter((pair["chosen_origin"], pair["rejected_origin"]) for pair in pairs)
    assert origins == {("offline", "offline"): round(0.7 * PAIRS), ("on_policy", "on_policy"): PAIRS - round(0.7 * PAIRS)}
    assert all(isinstance(pair["margin"], float) for pair in pairs)
    manifest = manifest_of(finished, f"iter{iteration}/pairs.manifest.json")
    kept, dropped = manifest["margins"]["offline_kept"], manifest["margins"]["offline_dropped"]
    assert kept > dropped
    assert manifest["swapped"] == sum(pair["swapped"] for pair in pairs)


def test_no_completion_is_scored_twice_by_a_policy_in_any_iteration(finished: Workspace) -> None:
    stored = [
        (row["policy"], row["completion"])
        for path in sorted(finished.folder.glob("runs/mine-micro/iter*/logprobs/*.jsonl"))
        for row in rows(path)
    ]
    assert len(stored) == len(set(stored)) > 0
    assert manifest_of(finished, "iter3/pairs.manifest.json")["store_entries"] == len(stored)
    already = manifest_of(finished, "iter3/logprobs/manifest.json")["already_stored"]
    assert already["iter2"] == 0
    assert already["iter1"] >= 2 * PAIRS


@pytest.mark.parametrize("iteration", [1, 2, 3])
def test_training_reads_its_reference_from_the_store_of_its_iteration(finished: Workspace, iteration: int) -> None:
    policy = manifest_of(finished, f"iter{iteration}/policy/manifest.json")
    store = finished.folder / f"runs/mine-micro/iter{iteration}/logprobs"
    assert "../logprobs" in policy["inputs"] or "logprobs" in policy["inputs"]
    assert policy["start"] in {row["policy"] for path in store.glob("*.jsonl") for row in rows(path)}
    log = json.loads((store.parent / "policy/trainer_state.json").read_text())["log_history"]
    assert abs(log[0]["rewards/margins"]) < 1e-4


def test_gamma_0_is_no_ensemble_and_selection_alone_does_without_the_weights_of_policies_before(copy: Workspace) -> None:
    chosen = {}
    for gamma in ("gamma: 0", "gamma: 0.3"):
        copy.write(SERA.replace("rule: sera", f"rule: sera, bootstrap: 0, {gamma}"))
        copy.run("mine-micro-iter2")
        # Iteration 3 scores by iter2 what is new; all that the older policies must have scored is in their stores.
        for older in ("sft", "iter1"):
            (copy.folder / f"runs/mine-micro/{older}/policy/model.safetensors").rename(copy.folder / "aside")
            goal = [c for c in copy.commands("mine-micro-iter3") if "iter3" in c and "train_policy" not in c]
            for command in goal:
                status, said = copy.execute(command)
                assert status == 0, said
            (copy.folder / "aside").rename(copy.folder / f"runs/mine-micro/{older}/policy/model.safetensors")
        chosen[gamma] = {pair["prompt_id"]: pair["margin"] for pair in pairs_of(copy, 3)}
        assert manifest_of(copy, "iter3/logprobs/manifest.json")["scored"] == {
            "iter2": 2 * PAIRS, **{name: 0 for name in (["iter1", "sft"] if gamma.endswith("3") else ["iter1"])}
        }  # fmt: skip
        assert len(chosen[gamma]) == round(0.7 * PAIRS)
    policies = {name: manifest_of(copy, f"{name}/policy/manifest.json")["policy"] for name in ("iter1", "iter2")}
    stored = {
        (row["policy"], row["completion"]): row["sum"]
        for path in copy.folder.glob("runs/mine-micro/iter*/logprobs/*.jsonl")
        for row in rows(path)
    }
    from handbook_ext.core.records import completion_id

    latest = {}
    for row in rows(copy.folder / "runs/mine-micro/data/rows/train.jsonl"):
        sides = [completion_id(row["prompt_id"], row["prompt"], row[side]) for side in ("chosen", "rejected")]
        better, worse = (stored[policies["iter2"], side] - stored[policies["iter1"], side] for side in sides)
        latest[row["prompt_id"]] = better - worse
    kept = sorted(latest, key=lambda name: -latest[name])[: round(0.7 * PAIRS)]
    assert chosen["gamma: 0"] == pytest.approx({name: latest[name] for name in kept}, abs=1e-9)
    assert chosen["gamma: 0.3"] != pytest.approx(chosen["gamma: 0"], abs=1e-9)


def test_bootstrapping_alone_scores_no_offline_answer(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "own", SERA.replace("rule: sera", "rule: sera, keep: 0, bootstrap: 1"))
    workspace.run("mine-micro-iter2")
    assert {pair["chosen_origin"] for pair in pairs_of(workspace, 2)} == {"on_policy"}
    scored = manifest_of(workspace, "iter2/logprobs/manifest.json")
    assert scored["already_stored"]["sft"] < 2 * PAIRS
    assert set(scored["scored"]) == {"iter1", "sft"}


def test_a_limit_of_the_recipe_stops_the_run_before_the_next_iteration(copy: Workspace) -> None:
    copy.write(SERA + "health: {max_length_gap: 0.01, max_identical_pairs: 0.5}\n")
    check, *_ = copy.commands("mine-micro-iter2")
    assert check.endswith("scripts/check_health.py runs/mine-micro/iter1")
    status, said = copy.execute(check)
    assert status == 2
    assert "iter1: the run stops here: length_gap is" in said and "health.max_length_gap is 0.01" in said
    assert said.count("error:") == 1
    assert not (copy.folder / "runs/mine-micro/iter1/health.json").exists()
    copy.write(SERA + "health: {max_length_gap: 100, min_distinct_completions: 0.01}\n")
    before = pairs_of(copy, 2)
    check, *others = copy.run("mine-micro-iter2")  # The others only find that they are up to date.
    assert check.endswith("scripts/check_health.py runs/mine-micro/iter1")
    assert not any("iter1" in command for command in others)
    assert pairs_of(copy, 2) == before
    assert manifest_of(copy, "iter1/health.json")["pairs"] == PAIRS


def test_data_without_scores_cannot_be_selected_by_score(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "scores", SERA)
    plain = [{"prompt": f"say {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(8)]
    text = "".join(json.dumps(row) + "\n" for row in plain)
    for name in ("train", "test"):
        (workspace.folder / f"recipes/mine/{name}.jsonl").write_text(text)
    recipe = SERA.replace("data: {flip_rate: 0.4, ", "data: {train: train.jsonl, test: test.jsonl, ")
    workspace.write(
        recipe.replace("rule: sera", "rule: sera, keep_by: score_gap, bootstrap: 0") + "rank: {ranker: reward_model}\n"
    )
    first = workspace.commands("mine-micro-iter2")[0]
    status, said = workspace.execute(first)
    assert (first.endswith("scripts/prepare_data.py runs/mine-micro"), status) == (True, 2)
    assert "the selection needs score_chosen and score_rejected, which this row lacks" in said


PARTS = ("iter1", "iter2")


def test_a_table_runs_its_recipes_shares_what_is_equal_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "table", SERA.replace("iter1: {", "iter3: null, iter1: {"))
    workspace.write("base: micro.yaml\ntrain: {loss_type: ipo, beta: 1.0}\n", "ipo")
    (workspace.folder / "recipes/tables/mine.yaml").write_text(
        "title: A small table\nsource: ours\nrows:\n"
        "  - {name: SFT, recipe: mine-micro, policy: sft}\n  - {name: DPO, recipe: mine-micro}\n"
        "  - {name: IPO, recipe: mine-ipo}\n"
        "claims: [{better: IPO, worse: DPO, words: IPO beats DPO.}]\nsimilarity: [iter1, iter2]\ndifferences: [IPO, DPO]\n"
    )
    monkeypatch.setenv("HANDBOOK_SHARE", "1")
    monkeypatch.setenv("SEEDS", "2")
    done = workspace.run("table-mine")
    assert sum("train_sft" in command for command in done) == 4
    shared = json.loads((workspace.folder / "runs/mine-ipo/sft/policy/manifest.json").read_text())
    assert (
        shared["shared_from"].startswith("runs/mine-micro/") or manifest_of(workspace, "sft/policy/manifest.json")["shared_from"]
    )
    page = (workspace.folder / "runs/table-mine/report/table.md").read_text()
    assert page.count("\n| SFT |") == page.count("\n| DPO |") - 1 == 1
    told = json.loads((workspace.folder / "runs/table-mine/report/summary.json").read_text())
    kept = [
        {json.loads(line)["prompt_id"] for line in path.open() if json.loads(line)["chosen_origin"] == "offline"}
        for path in (workspace.folder / f"runs/mine-{name}/{part}/pairs.jsonl" for name in ("ipo", "ipo-seed2") for part in PARTS)
    ]
    alike = [len(first & second) / len(first | second) for first, second in (kept[:2], kept[2:])]
    assert told["overlap_between_iterations"]["IPO"] == pytest.approx(sum(alike) / 2) != 1
    assert "| iter1 and iter2 |" in page
    # Each row is the last policy of its run, or the one that it names, over both seeds.
    for row, run, policy in zip(told["rows"], ("micro", "micro", "ipo"), ("sft", "iter2", "iter2"), strict=True):
        files = [workspace.folder / f"runs/mine-{run}{seed}/{policy}/eval.json" for seed in ("", "-seed2")]
        means = [json.loads(path.read_text())["decodings"]["sampled"]["mean_reward"] for path in files]
        assert row["decodings"]["sampled"]["reward"]["value"] == pytest.approx(sum(means) / 2)
    assert "IPO beats DPO. Our runs **" in page
    assert (workspace.folder / "runs/table-mine/report/reward_differences.png").is_file()
    evaluated = json.loads((workspace.folder / "runs/mine-ipo/sft/eval.manifest.json").read_text())
    assert evaluated["shared_from"] == "runs/mine-micro/sft/eval.json"
    *rest, table = workspace.commands("table-mine")
    assert rest == []
    status, said = workspace.execute(table)
    assert status == 0
    assert "is up to date" in said
