"""The health of an iteration: each metric by hand, what it is read from, and the limits that it exceeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.jsonl import Row, write_rows
from handbook_ext.core.records import Candidate, Completion, PreferencePair, Ranking, assistant, completion_id, user
from handbook_ext.recipes.settings import HealthSettings
from handbook_ext.reports.health import (
    exceeded,
    files_of,
    judgement_health,
    pair_health,
    read_health,
    sample_health,
    summary_line,
    training_health,
)
from tests.manifests import BARE

ASK = user("Which?")


def pair(chosen: str, rejected: str, explore: str | None = None, **columns: Any) -> PreferencePair:
    explored = None if explore is None else assistant(explore)
    return PreferencePair.of("p", ASK, assistant(chosen), assistant(rejected), explored).model_copy(update=columns)


def sample(prompt_id: str, text: str, finish_reason: str = "stop") -> Completion:
    columns = {"sample": 0, "seed": 0, "prompt_tokens": 1, "completion_tokens": 1, "finish_reason": finish_reason}
    return Completion.of(prompt_id, ASK, text, **columns)


def ranked(*scores: float | None) -> Ranking:
    """A ranking of candidates with these scores; None is a failed judgement, whose score means nothing."""
    candidates = [
        Candidate(
            origin="on_policy", sample=number, text=str(number), completion_id=completion_id("p", ASK, assistant(str(number))),
            score=100.0 + number if score is None else score, rank=1, failed=score is None,
        )
        for number, score in enumerate(scores)
    ]  # fmt: skip
    return Ranking(prompt_id="p", prompt=ASK, candidates=candidates, ties=0)


# Words 3, 5, 1, 3 of chosen and 1, 1, 1, 5 of rejected. One chosen is on policy; of the other three, two labels were swapped.
PAIRS = [
    pair("a b c", "x", explore="a b c"),
    pair("a b c d e", "x", explore="x", chosen_origin="on_policy", swapped=True),
    pair("a", "x", swapped=True),
    pair("a b c", "v w x y z", explore="other", swapped=True),
]


def test_lengths_shares_and_margins_of_the_pairs() -> None:
    """Length against being chosen: deviations of the words are .5, 2.5, -1.5, .5, -1.5, -1.5, -1.5, 2.5 around 2.5."""
    manifest = {
        "counts": {"in": 10, "dropped": {"chosen equals rejected": 4, "all samples are equal": 1}},
        "margins": {"offline_kept": 1.25}, "store_entries": 12,
    }  # fmt: skip
    found = pair_health(PAIRS, manifest)
    correlation = found.pop("length_correlation")
    assert correlation == pytest.approx(0.5 * (0.5 + 2.5 - 1.5 + 0.5 + 1.5 + 1.5 + 1.5 - 2.5) / (2 * 22) ** 0.5)
    assert found == {
        "pairs": 4.0, "length_gap": 3.0 - 2.0, "identical_pairs": 0.4, "on_policy_chosen": 0.25, "swapped": pytest.approx(2 / 3),
        "explore_is_chosen": 0.25, "margin_offline_kept": 1.25, "log_probs_stored": 12.0,
    }  # fmt: skip


def test_a_selection_that_dropped_and_stored_nothing() -> None:
    found = pair_health(PAIRS[:2], {"counts": {"in": 2}, "margins": {}})
    assert found["identical_pairs"] == 0
    assert found.keys().isdisjoint({"log_probs_stored", "margin_offline_kept"})
    assert pair_health(PAIRS[:2], {"counts": {"in": 1, "dropped": {"chosen equals rejected": 1}}})["identical_pairs"] == 1.0
    assert pair_health(PAIRS[:2], {"counts": {"in": 0}, "store_entries": 0}).keys() == found.keys()


def test_pairs_without_an_offline_label_or_of_one_length_leave_metrics_open() -> None:
    found = pair_health([pair("a b", "c d", chosen_origin="on_policy")], {"counts": {"in": 1}})
    assert (found["swapped"], found["length_correlation"], found["length_gap"]) == (None, None, 0.0)
    assert pair_health([pair("a b", "c d", swapped=True)], {"counts": {"in": 1}})["swapped"] == 1.0


def test_own_pairs_are_those_of_which_the_policy_wrote_both_sides() -> None:
    """Of three own pairs one has the longer chosen and one two equally long; the other two pairs have one side of the data."""
    own = {"chosen_origin": "on_policy", "rejected_origin": "on_policy"}
    pairs = [pair("a b", "x", **own), pair("a", "x", **own), pair("a", "x y", **own)]
    pairs += [pair("a b c", "x", **{side: "on_policy"}) for side in own]
    assert pair_health(pairs, {"counts": {"in": 5}})["own_chosen_longer"] == pytest.approx(1 / 3)
    assert "own_chosen_longer" not in pair_health(pairs[3:], {"counts": {"in": 2}})


def test_samples_are_distinct_within_their_prompt_empty_or_cut() -> None:
    """Two of three are distinct for p, one of one for q, so 5/6 in the mean; of all four three; two are empty, one is cut."""
    rows = [sample("p", "a"), sample("p", " \n", "length"), sample("p", "a"), sample("q", "")]
    found = sample_health(rows)
    assert found == {
        "distinct_completions": pytest.approx(5 / 6), "distinct_texts": 0.75, "empty_completions": 0.5, "cut_completions": 0.25,
    }  # fmt: skip
    assert sample_health([sample("p", "a"), sample("q", "a")])["distinct_texts"] == 0.5


def test_judgements_tie_where_all_that_did_not_fail_are_equal() -> None:
    """Ties: the second and the third, of whose judgements one failed, and the fourth, of which only one is left."""
    found = judgement_health([ranked(1, 2), ranked(3, 3), ranked(3, None, 3), ranked(None, 5), ranked(1, 2, 2)])
    assert found == {
        "tied_prompts": 3 / 5, "failed_judgements": 2 / 12, "tied_candidates": 0.0, "cut_judgements": 0.0,
        "order_disagreements": 0.0,
    }  # fmt: skip


def test_what_a_ranker_cut_tied_and_doubted_is_a_share_of_its_candidates_or_prompts() -> None:
    one, other = ranked(1, 1), ranked(2, 3, 4)
    cut = [each.model_copy(update={"truncated": number == 0}) for number, each in enumerate(other.candidates)]
    found = judgement_health(
        [one.model_copy(update={"ties": 2, "disagreements": 1}), other.model_copy(update={"candidates": cut})]
    )
    assert (found["tied_candidates"], found["cut_judgements"], found["order_disagreements"]) == (2 / 5, 1 / 5, 1 / 2)


def logged(number: int, **more: float) -> dict[str, float]:
    return {"step": number, "loss": 0.5, "logps/chosen": -10.0 - number, "logps/rejected": -20.0} | more


def test_training_is_judged_by_the_last_third_of_its_logged_steps() -> None:
    """Nine steps, so the last three: 7, 8 and 9; the line of the whole training holds no log-probs and is none of them."""
    keys = ("logps/chosen_fall", "rewards/chosen", "rewards/margins")
    history = [logged(n, **{key: factor * n for factor, key in zip((1.0, 2.0, 3.0), keys, strict=True)}) for n in range(1, 10)]
    found = training_health([*history, {"train_loss": 0.4, "step": 9}])
    assert found == {"chosen_fall": 8.0, "chosen_reward": 16.0, "reward_margin": 24.0}
    # Of five steps a third is one, and so it is of one step.
    assert training_health(history[:5])["chosen_fall"] == 5.0
    assert training_health(history[:1])["chosen_fall"] == 1.0


def test_a_loss_without_reference_falls_from_its_first_third_to_its_last() -> None:
    """Mean log-probs of steps 1 to 3 are -12, of steps 7 to 9 -18; of two steps each third is one step: -11 and -12."""
    found = training_health([logged(n, **{"rewards/margins": 1.0 * n}) for n in range(1, 10)])
    assert found == {"chosen_fall": 6.0, "chosen_reward": None, "reward_margin": 8.0}
    assert training_health([logged(1), logged(2)])["chosen_fall"] == 1.0
    assert training_health([logged(1)])["chosen_fall"] is None
    assert training_health([]) == {"chosen_fall": None, "chosen_reward": None, "reward_margin": None}


BOUNDS = [
    ("max_tied_prompts", "tied_prompts", 0.5, 0.6), ("max_identical_pairs", "identical_pairs", 0.5, 0.6),
    ("max_empty_completions", "empty_completions", 0.5, 0.6), ("min_distinct_completions", "distinct_completions", 0.5, 0.4),
    ("max_length_correlation", "length_correlation", 0.5, -0.6), ("max_length_gap", "length_gap", 8.0, 9.5),
    ("max_chosen_fall", "chosen_fall", 8.0, 9.5), ("max_kl", "kl", 8.0, 9.5),
]  # fmt: skip


@pytest.mark.parametrize(("limit", "metric", "bound", "beyond"), BOUNDS)
def test_a_limit_is_exceeded_beyond_it_and_not_at_it(limit: str, metric: str, bound: float, beyond: float) -> None:
    limits = HealthSettings(**{limit: bound})
    healthy = {name: 0.5 if name == "distinct_completions" else 0.0 for _, name, *_ in BOUNDS}
    assert exceeded(healthy | {metric: bound}, limits) == []
    assert exceeded(healthy | {metric: beyond}, limits) == [f"{metric} is {beyond:g}, health.{limit} is {bound:g}"]
    assert exceeded(healthy | {metric: beyond}, HealthSettings()) == []


def test_only_kl_and_fall_must_be_measured_once_they_are_limited() -> None:
    """The others are of samples and judgements, which some selection rules do not make."""
    limits = HealthSettings(**{limit: bound for limit, _, bound, _ in BOUNDS})
    clauses = ["chosen_fall was not measured, but health.max_chosen_fall is 8", "kl was not measured, but health.max_kl is 8"]
    assert exceeded({}, limits) == clauses
    assert exceeded({"kl": None, "length_correlation": None}, limits) == clauses
    assert exceeded({}, HealthSettings()) == []


def test_the_summary_line_leaves_out_what_was_not_measured() -> None:
    assert summary_line({"tied_prompts": 0.25, "kl": None, "length_gap_of_all": 1234.5678}) == (
        "tied prompts 0.25, length gap of all 1.23e+03"
    )


@pytest.fixture
def iteration(tmp_path: Path) -> Path:
    """An iteration with all its files: pairs of judged samples, a log of one step, an evaluation of its policy."""
    folder = tmp_path / "iter1"
    (folder / "policy").mkdir(parents=True)
    files: dict[str, list[Row]] = {
        "pairs": [*PAIRS], "completions": [sample("p", "a"), sample("p", "a")], "rankings": [ranked(1, 1)],
    }  # fmt: skip
    for name, rows in files.items():
        write_rows(folder / f"{name}.jsonl", rows)
    set_inputs(folder, "completions.jsonl", "rankings.jsonl")
    (folder / "policy" / "trainer_state.json").write_text(json.dumps({"log_history": [logged(1, **{"rewards/margins": 4.0})]}))
    (folder / "policy" / "manifest.json").write_text(json.dumps(BARE | {"sha256": "of these weights"}))
    (folder / "eval.json").write_text(json.dumps({"implicit": {"kl": 2.5}}))
    (folder / "eval.manifest.json").write_text(json.dumps(BARE | {"inputs": {"policy": "of these weights"}}))
    return folder


def set_inputs(folder: Path, *names: str) -> None:
    manifest = BARE | {"counts": {"in": 4}, "inputs": dict.fromkeys(names, "0" * 64)}
    (folder / "pairs.manifest.json").write_text(json.dumps(manifest))


def test_an_iterations_health_is_read_from_all_its_files(iteration: Path) -> None:
    found = read_health(files_of(iteration))
    assert found["pairs"] == 4.0
    assert (found["distinct_completions"], found["tied_prompts"]) == (0.5, 1.0)
    assert (found["reward_margin"], found["kl"]) == (4.0, 2.5)


@pytest.mark.parametrize(
    ("inputs", "sampled", "judged"),
    [((), False, False), (("completions.jsonl",), True, False), (("rankings.jsonl",), True, True), (("logprobs",), False, False)],
)
def test_files_that_the_pairs_were_not_made_from_do_not_count(
    iteration: Path, inputs: tuple[str, ...], sampled: bool, judged: bool
) -> None:
    set_inputs(iteration, *inputs)
    found = read_health(files_of(iteration))
    assert ("distinct_completions" in found, "tied_prompts" in found) == (sampled, judged)


def test_the_kl_is_that_of_these_weights_or_none(iteration: Path) -> None:
    evaluation, manifest = iteration / "eval.json", iteration / "eval.manifest.json"
    for text in ('{"implicit": null}', "{}", '{"implicit": {}}'):
        evaluation.write_text(text)
        assert read_health(files_of(iteration))["kl"] is None
    evaluation.write_text(json.dumps({"implicit": {"kl": 2.5}}))
    for inputs in ({"policy": "of other weights"}, {}):
        manifest.write_text(json.dumps(BARE | {"inputs": inputs}))
        assert "kl" not in read_health(files_of(iteration))
    manifest.unlink()
    assert "kl" not in read_health(files_of(iteration))


def test_an_untrained_iteration_has_the_health_of_its_pairs(iteration: Path) -> None:
    (iteration / "policy" / "trainer_state.json").unlink()
    (iteration / "policy" / "manifest.json").unlink()
    assert read_health(files_of(iteration)).keys().isdisjoint({"chosen_fall", "reward_margin", "kl"})


def test_a_file_that_is_not_named_is_not_read(iteration: Path) -> None:
    """Whatever lies beside the pairs, such as an evaluation that happened to run first."""
    files = {"pairs": iteration / "pairs.jsonl"}
    few = read_health(files)
    assert few.keys() == pair_health(PAIRS, {"counts": {"in": 4}}).keys()
    assert read_health(files | {"evaluation": iteration / "eval.json"}) == few | {"kl": 2.5}
    (iteration / "eval.json").write_text(json.dumps({"implicit": {"kl": 2.5, "surprisal": 7.0}}))
    assert read_health(files | {"evaluation": iteration / "eval.json"}) == few | {"kl": 2.5, "surprisal": 7.0}
    assert read_health(files | {"rankings": iteration / "rankings.jsonl"}).keys() - few == {
        "tied_prompts", "failed_judgements", "tied_candidates", "cut_judgements", "order_disagreements",
    }  # fmt: skip
