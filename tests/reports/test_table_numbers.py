"""The numbers of a table's rows, from run folders made by hand: scores, single numbers, kept pairs and their overlaps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import PreferencePair, assistant, user
from handbook_ext.objectives.metrics import Interval
from handbook_ext.recipes.table_files import Claim, Table, TableRow
from handbook_ext.reports.claims import judge_claims
from handbook_ext.reports.evaluations import Evaluator
from handbook_ext.reports.table_summary import RowRuns, summarise_table, table_inputs
from handbook_ext.reports.tables import (
    kept_ids,
    measure,
    overlap_between_iterations,
    overlap_between_rows,
    reward_differences,
    summarise_row,
)
from tests.reports.test_tables import measured

IMPLICIT = {
    "correlation_reward": 0.1, "rank_correlation_reward": 0.2, "correlation_tokens": -0.3, "rank_correlation_tokens": -0.4,
    "kl": 5.0, "accuracy": 0.6,
}  # fmt: skip
ROW = TableRow(name="A", recipe="tiny-sera", x=0.5, paper="37.5")
FEW = {"resamples": 50, "confidence": 0.9}


def write_evaluation(
    folder: Path, rewards: list[float], *, seed: int = 1, implicit: Any = None, temperature: float = 0.7
) -> None:
    """An eval.json of the prompts a and b under two decodings: greedy gives 3 more reward, in 3 more tokens."""
    decodings = {}
    for name, at, more in (("greedy", 0.0, 3), ("sampled", 0.7, 0)):
        rows = [{"prompt_id": each, "reward": one + more, "tokens": 4 + more} for each, one in zip("ab", rewards, strict=True)]
        decodings[name] = {"temperature": at, "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"seed": seed, "ranker": "oracle", "judge": "", "decodings": decodings, "implicit": implicit}
    (folder / "eval.json").write_text(json.dumps(content))


def write_pairs(folder: Path, offline: dict[str, bool], on_policy: str = "") -> None:
    """pairs.jsonl with offline pairs, by prompt id whether their label is swapped, and on-policy ones."""
    ids = [*((name, "offline", flag) for name, flag in offline.items()), *((name, "on_policy", True) for name in on_policy)]
    rows = [
        PreferencePair.of(name, user(name), assistant("good"), assistant("bad")).model_copy(
            update={"chosen_origin": origin, "swapped": flag}
        )
        for name, origin, flag in ids
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "pairs.jsonl", rows)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two seeds of a run: the start, and two iterations of which the last keeps 3 or 2 offline pairs and 1 of its own."""
    found = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(found, start=1):
        write_evaluation(folder / "sft", [1.0, 2.0], seed=seed)
        write_evaluation(folder / "iter1", [1.5, 2.5], seed=seed)
        write_evaluation(folder / "iter2", [2.0, 1.0 + seed], seed=seed, implicit=IMPLICIT | {"kl": 4.0 + seed})
        write_pairs(folder / "iter1", dict.fromkeys("abcd", False) | {"a": True})
        write_pairs(folder / "iter2", dict.fromkeys("abe"[: 4 - seed], False) | {"a": True}, on_policy="z")
    return found


def test_a_row_is_measured_seed_by_seed(folders: list[Path]) -> None:
    found = measure(ROW, folders, "sft", "iter2")
    assert (found.row, found.policy) == (ROW, "iter2")
    assert {name: [one.rewards.tolist() for one in each] for name, each in found.scores.items()} == {
        "greedy": [[5.0, 5.0], [5.0, 6.0]], "sampled": [[2.0, 2.0], [2.0, 3.0]]
    }  # fmt: skip
    assert [one.rewards.tolist() for one in found.initial_scores["sampled"]] == [[1.0, 2.0], [1.0, 2.0]]
    assert found.initial_scores.keys() == found.scores.keys()
    assert found.evaluators == [Evaluator(1, "oracle", ""), Evaluator(2, "oracle", "")]
    # Offline labels alone: what the policy wrote itself has none.
    assert found.swapped == [{"a": True, "b": False, "e": False}, {"a": True, "b": False}]
    assert found.numbers == {name: [value] * 2 for name, value in IMPLICIT.items() if name not in ("accuracy", "kl")} | {
        "kl": [5.0, 6.0], "on_policy": [1 / 4, 1 / 3]
    }  # fmt: skip


def test_a_row_may_show_another_policy_than_the_last_and_lack_numbers(folders: list[Path]) -> None:
    found = measure(ROW.model_copy(update={"policy": "iter1"}), folders, "sft", "iter2")
    assert (found.policy, found.numbers) == ("iter1", {"on_policy": [0.0, 0.0]})
    found = measure(ROW.model_copy(update={"policy": "sft"}), folders, "sft", "iter2")
    assert (found.numbers, found.swapped) == ({}, [])
    write_evaluation(folders[0] / "iter1", [1.5, 2.5], implicit={"kl": 3.0, "correlation_reward": None})
    write_pairs(folders[0] / "iter1", {}, on_policy="yz")
    found = measure(ROW.model_copy(update={"policy": "iter1"}), folders[:1], "sft", "iter2")
    assert (found.numbers, found.swapped) == ({"kl": [3.0], "on_policy": [1.0]}, [])


def test_a_row_of_a_policy_kept_on_the_way_has_its_rewards_and_the_pairs_of_its_training(folders: list[Path]) -> None:
    for seed, folder in enumerate(folders, start=1):
        write_evaluation(folder / "iter2@25", [7.0, 8.0], seed=seed)
    found = measure(ROW.model_copy(update={"policy": "iter2@25"}), folders, "sft", "iter2")
    assert [one.rewards.tolist() for one in found.scores["sampled"]] == [[7.0, 8.0]] * 2
    assert (found.policy, found.numbers) == ("iter2@25", {"on_policy": [1 / 4, 1 / 3]})
    assert found.swapped == [{"a": True, "b": False, "e": False}, {"a": True, "b": False}]


def test_a_rows_numbers_are_means_over_its_seeds(folders: list[Path]) -> None:
    found = summarise_row(measure(ROW, folders, "sft", "iter2"), **FEW)
    decodings = found.pop("decodings")
    shown = {name: each.value if isinstance(each, Interval) else each for name, each in found.items()}
    assert shown.pop("swapped_kept") == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert shown == pytest.approx(
        {name: value for name, value in IMPLICIT.items() if name != "accuracy"}
        | {
            "name": "A",
            "recipe": "tiny-sera",
            "policy": "iter2",
            "paper": "37.5",
            "tuned": "-",
            "x": 0.5,
            "kl": 5.5,
            "on_policy": 7 / 24,
        }
    )
    assert found["kl"] == Interval(5.5, 5.0, 6.0)
    assert decodings.keys() == {"greedy", "sampled"}
    means = {name: each.value for name, each in decodings["sampled"].items()}
    # Seed 1 wins one prompt of two and ties in the other, seed 2 wins both.
    assert means == {"reward": 2.25, "tokens": 4.0, "win_rate": (0.75 + 1.0) / 2}
    assert (decodings["greedy"]["reward"].value, decodings["greedy"]["tokens"].value) == (5.25, 7.0)


def test_a_rows_intervals_are_made_as_asked(folders: list[Path]) -> None:
    """With one resample every interval has no width; with many, those of seeds that differ have one."""
    row = measure(ROW, folders, "sft", "iter2")
    one, many = (summarise_row(row, resamples=resamples, confidence=0.9) for resamples in (1, 200))
    for name in ("reward", "win_rate"):
        narrow, wide = (each["decodings"]["sampled"][name] for each in (one, many))
        assert narrow.low == narrow.high and wide.low < wide.high
    assert one["swapped_kept"].low == one["swapped_kept"].high and many["swapped_kept"].low < many["swapped_kept"].high


def test_seeds_that_share_their_prompts_draw_them_together() -> None:
    """Two equal seeds: drawn together they are as uncertain as one, drawn apart their errors would average out."""
    row = measured("A", 1.0)
    of_seed, at_start = row.scores["sampled"][0], row.initial_scores["sampled"][0]
    twice, once = (replace(row, scores={"sampled": [of_seed] * n}, initial_scores={"sampled": [at_start] * n}) for n in (2, 1))
    for key in ("reward", "tokens"):
        wide, single = (summarise_row(each, resamples=4000)["decodings"]["sampled"][key] for each in (twice, once))
        assert wide.high - wide.low == pytest.approx(single.high - single.low, rel=0.1, abs=1e-9)


def test_a_claim_says_what_was_compared_and_shows_its_statistic(folders: list[Path]) -> None:
    rows = {"A": measure(ROW, folders, "sft", "iter2"), "B": measure(ROW, folders, "sft", "iter1")}
    claim = Claim(better="A", worse="B", words="A beats B")
    labels = claim.model_copy(update={"by": "flipped labels"})
    wins, judged = judge_claims([claim, labels], rows, "sampled", **FEW)
    # 2 and 2 against 1.5 and 2.5, then 2 and 3: three wins of four.
    assert wins["win_rate"].value == 0.75
    stated = {"words": "A beats B", "by": "win rate", "better": "A", "worse": "B", "seeds": 2, "tests": 2}
    assert {key: wins[key] for key in stated} == stated
    assert {*judged} == {*wins} - {"win_rate"} | {"difference"}
    # One flipped label of 3 kept, and of 2, each against one of 4.
    assert judged["difference"].value == pytest.approx((1 / 3 + 1 / 2) / 2 - 1 / 4)
    assert judged["verdict"] != "agrees"


def test_overlaps_are_jaccard_similarities_of_the_offline_pairs(folders: list[Path]) -> None:
    """Iteration 1 keeps a, b, c, d; iteration 2 keeps a, b, e in seed 1 and a, b in seed 2: 2 of 5, and 2 of 4."""
    assert kept_ids(folders[0], "iter2") == {"a", "b", "e"}
    assert overlap_between_iterations(folders, ("iter1", "iter2")) == pytest.approx((2 / 5 + 2 / 4) / 2)
    assert overlap_between_iterations(folders, ("iter2", "iter2")) == 1.0
    other = [folders[1], folders[0]]
    assert overlap_between_rows({"A": folders, "B": other}, "iter2") == {
        ("A", "A"): 1.0, ("B", "B"): 1.0, ("A", "B"): pytest.approx(2 / 3)
    }  # fmt: skip


def test_reward_differences_are_of_the_completions_of_one_side(tmp_path: Path) -> None:
    def implicit(**values: float) -> Path:
        rows = [{"prompt_id": name, "side": "chosen", "log_ratio": value} for name, value in values.items()]
        rows += [{"prompt_id": name, "side": "rejected", "log_ratio": 100.0} for name in values]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"implicit": {"rows": rows}}))
        return path

    ours, theirs = implicit(a=1.0, b=5.0, c=2.0, only_here=9.0), implicit(a=0.5, b=1.0, c=4.0, only_there=9.0)
    assert reward_differences(ours, theirs, "chosen") == {"a": 0.5, "b": 4.0, "c": -2.0}
    assert reward_differences(ours, theirs, "rejected") == dict.fromkeys("abc", 0.0)
    assert reward_differences(ours, theirs, "sample") == {}
    for text in ('{"implicit": null}', "{}"):
        theirs.write_text(text)
        assert reward_differences(ours, theirs, "chosen") == {}


def table(**more: Any) -> Table:
    rows = [
        {"name": "A", "recipe": "ours"},
        {"name": "B", "recipe": "theirs"},
        {"name": "start", "recipe": "ours", "policy": "sft"},
    ]
    return Table.model_validate({"title": "t", "source": "s", "rows": rows} | more)


def runs_of(ours: list[Path], theirs: list[Path]) -> dict[str, RowRuns]:
    return {name: RowRuns("sft", "iter2", folders) for name, folders in (("A", ours), ("B", theirs), ("start", ours))}


def test_a_table_is_made_from_evaluations_and_pairs_each_once(folders: list[Path]) -> None:
    runs = runs_of(folders[:1], folders[1:])
    names = ("sft/eval.json", "iter2/eval.json", "iter2/pairs.jsonl")
    assert table_inputs(table(), runs) == [folder / name for folder in folders for name in names]
    names = ("sft/eval.json", "iter2/eval.json", "iter1/pairs.jsonl", "iter2/pairs.jsonl")
    compared = table(similarity=["iter1", "iter2"])
    assert table_inputs(compared, runs) == [folder / name for folder in folders for name in names]


def test_a_table_has_a_row_each_claims_by_samples_and_the_overlaps_that_it_asks_for(folders: list[Path]) -> None:
    runs = runs_of(folders, folders[::-1])
    claims = [{"better": "A", "worse": "start", "words": "w"}]
    found = summarise_table(table(claims=claims, similarity=["iter1", "iter2"]), runs, **FEW)
    assert [row["name"] for row in found.rows] == ["A", "B", "start"]
    assert found.decodings == ["sampled", "greedy"]
    assert found.claims[0]["win_rate"].value == (0.75 + 1.0) / 2
    assert (list(found.measured), found.bootstrap) == (["A", "B", "start"], FEW)
    assert found.overlap_between_rows[("A", "B")] == pytest.approx(2 / 3)
    assert found.overlap_between_iterations == {"A": pytest.approx(0.45), "B": pytest.approx(0.45)}
    summary = found.summary()
    assert {"rows": ["A", "B"], "jaccard": pytest.approx(2 / 3)} in summary.pop("overlap_between_rows")
    assert summary == {"rows": found.rows, "claims": found.claims, "overlap_between_iterations": found.overlap_between_iterations}


def test_a_table_that_asks_for_no_or_one_overlap(folders: list[Path]) -> None:
    runs = runs_of(folders, folders)
    plain, one = (summarise_table(table(similarity=names), runs, **FEW) for names in ([], ["iter2"]))
    assert plain.summary().keys() == {"rows", "claims"}
    assert (plain.overlap_between_rows, plain.overlap_between_iterations) == ({}, {})
    assert (one.overlap_between_rows.keys(), one.overlap_between_iterations) == ({("A", "A"), ("A", "B"), ("B", "B")}, {})


def test_rows_that_were_decoded_otherwise_make_no_table(folders: list[Path]) -> None:
    for name in ("sft", "iter1", "iter2"):
        content = json.loads((folders[1] / name / "eval.json").read_text())
        del content["decodings"]["greedy"]
        (folders[1] / name / "eval.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="table t: its rows are not sampled at the same temperatures"):
        summarise_table(table(), runs_of(folders[:1], folders[1:]), **FEW)


def test_a_table_of_one_row(folders: list[Path]) -> None:
    alone = Table.model_validate({"title": "t", "source": "s", "rows": [{"name": "A", "recipe": "ours"}]})
    found = summarise_table(alone, {"A": RowRuns("sft", "iter2", folders)}, **FEW)
    assert (len(found.rows), found.decodings, found.claims) == (1, ["sampled", "greedy"], [])
