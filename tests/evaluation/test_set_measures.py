"""The measures of a set by a judge on loopback: which answers are compared, whose verdicts are kept, and what was spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import has_package
from handbook_ext.core.records import user
from handbook_ext.core.set_records import SetAnswer, SetPrompt, SetTurn

pytest.importorskip("openai")
from handbook_ext.evaluation.set_measures import SetGrader
from handbook_ext.graph.stages_benchmarks import GradeStage
from handbook_ext.judging.verdict_cache import VerdictCache
from handbook_ext.recipes.settings_benchmarks import DecodingSettings, GraderSettings
from tests.judging.rule_judge import GradingServer, grading_server

# The judge likes longer answers: ours wins over the start's on the first prompt, ties on the second, loses on the third.
OURS = [["eight888", "one"], ["four"], ["xx", "seven77"]]
START = [["six667", "-"], ["five"], ["longest99", "-"]]


@pytest.fixture
def server() -> Iterator[GradingServer]:
    with grading_server() as found:
        yield found


def prompts() -> list[SetPrompt]:
    follow_ups = [["again"], [], ["again"]]
    outputs = ["six666", "seven77", "xx"]
    return [
        SetPrompt(prompt_id=f"p{place}", prompt=user(f"ask {place}"), follow_ups=more, outputs={"other": outputs[place]})
        for place, more in enumerate(follow_ups)
    ]


def answers(texts: Sequence[Sequence[str]]) -> list[SetAnswer]:
    turns = [[SetTurn(text=text, tokens=1, finish_reason="stop") for text in row] for row in texts]
    return [SetAnswer(prompt_id=f"p{place}", answers=row, seed=1) for place, row in enumerate(turns)]


def grader(folder: Path, url: str, measures: list[Any], **more: Any) -> SetGrader:
    judge = GraderSettings(model="m", base_url=url, max_retries=0, concurrency=1, input_price=1e6, output_price=0.0)
    settings = GradeStage.model_validate({
        "stage": "grade", "recipe": "r", "overrides": [], "seed": 1, "inputs": {}, "policy": "iter1", "set": "s",
        "checkpoint": None, "decoding": DecodingSettings(), "measures": measures, "outputs": ["other"], "baseline": None,
        "length_control": None, "judge": judge, "judge_runs": 1,
    } | more)  # fmt: skip
    return SetGrader(
        settings,
        prompts(),
        answers(OURS),
        answers(START),
        lambda kind: VerdictCache(folder / "replies.sqlite", f"iter1 s {kind}"),
    )


def test_an_answer_is_compared_with_the_starts_and_the_stored_one_to_the_same_prompt(
    tmp_path: Path, server: GradingServer
) -> None:
    found = grader(tmp_path, server.url, ["pairwise"]).grade()
    assert found.verdicts == {"vs_start": [[[1.0]], [[0.5]], [[0.0]]], "vs_other": [[[1.0]], [[0.0]], [[0.5]]]}
    assert found.measures["vs_start"].value == found.measures["vs_other"].value == pytest.approx(50.0)
    assert found.measures["vs_start"].standard_error == pytest.approx(50 / 3**0.5)


def test_a_turns_measure_keeps_the_verdicts_of_that_turn(tmp_path: Path, server: GradingServer) -> None:
    found = grader(tmp_path, server.url, ["mt_bench"], judge_runs=2).grade()
    # The judge gives 1 + the length.
    assert found.verdicts["average"] == [[[9.0, 4.0]] * 2, [[5.0]] * 2, [[3.0, 8.0]] * 2]
    assert found.verdicts["turn1"] == [[[9.0]] * 2, [[5.0]] * 2, [[3.0]] * 2]
    assert found.verdicts["turn2"] == [[[4.0]] * 2, [[]] * 2, [[8.0]] * 2]
    assert (found.measures["turn2"].value, found.measures["turn2"].n, found.measures["turn2"].missing) == (6.0, 2, 0)
    # Each run of the judge is asked anew.
    assert len(server.asked) == 10


def test_replies_tokens_and_cost_are_those_of_every_kind_of_question(tmp_path: Path, server: GradingServer) -> None:
    asking = grader(tmp_path, server.url, ["single", "pairwise"])
    spent = asking.grade().facts["judge"]
    assert spent["replies"] == spent["asked"] == asking.replies == len(server.asked) == 15
    # A question's tokens are its letters, and a million dollars buy a million of them.
    assert spent["prompt_tokens"] == sum(map(len, server.asked))
    assert spent["cost_usd"] == pytest.approx(sum(map(len, server.asked)))
    again = grader(tmp_path, server.url, ["single", "pairwise"]).grade().facts["judge"]
    assert again == spent | {"asked": 0, "from_cache": 15}


def test_replies_are_counted_where_the_judge_dies_at_its_second_kind_of_question(tmp_path: Path, server: GradingServer) -> None:
    server.dies_after = 7  # Five turns, and one comparison in both orders.
    asking = grader(tmp_path, server.url, ["single", "pairwise"])
    with pytest.raises(UserError, match="the key has run out"):
        asking.grade()
    assert asking.replies == 7


@pytest.mark.skipif(not has_package("alpaca_eval"), reason="alpaca-eval is not installed (extra eval)")
def test_alpaca_eval_is_of_ours_over_the_baseline_prompt_by_prompt(tmp_path: Path, server: GradingServer) -> None:
    found = grader(tmp_path, server.url, ["alpaca_eval"], baseline="start", length_control=str(tmp_path / "none.csv")).grade()
    first, second, third = (prompt[0][0] for prompt in found.verdicts["win_rate"])
    assert first > 0.5 and second == pytest.approx(0.5) and third < 0.5
    assert found.measures["win_rate"].value == pytest.approx(100 * (first + second + third) / 3)
    # Prompts that are none of AlpacaEval's have no length-controlled win rate, and no other one in its place.
    assert found.measures["lc_win_rate"].value is None and found.measures["lc_win_rate"].not_run
    assert found.measures["length"].value == 4 and found.measures["length"].judge is None


@pytest.mark.skipif(not has_package("alpaca_eval"), reason="alpaca-eval is not installed (extra eval)")
def test_alpaca_eval_over_stored_outputs_takes_those_and_not_the_starts(tmp_path: Path, server: GradingServer) -> None:
    found = grader(tmp_path, server.url, ["alpaca_eval"], baseline="other", length_control=str(tmp_path / "none.csv")).grade()
    first, second, third = (prompt[0][0] for prompt in found.verdicts["win_rate"])
    assert first > 0.5 and second < 0.5 and third == pytest.approx(0.5)


@pytest.mark.skipif(not has_package("alpaca_eval"), reason="alpaca-eval is not installed (extra eval)")
@pytest.mark.parametrize(("no_judge", "reason"), [(True, "benchmarks.judge"), (False, "is the baseline")])
def test_every_measure_says_why_it_is_not_run(tmp_path: Path, server: GradingServer, no_judge: bool, reason: str) -> None:
    more = {"judge": None} if no_judge else {}
    asking = grader(tmp_path, server.url, ["alpaca_eval"] if more == {} else ["alpaca_eval", "mt_bench", "single", "pairwise"],
                    baseline="start", **more)  # fmt: skip
    asking.start = [] if not no_judge else asking.start
    found = asking.grade()
    length = found.measures.pop("length")
    assert length.value == pytest.approx(sum(len(row[0]) for row in OURS) // 3)
    assert {*found.measures} >= {"lc_win_rate", "win_rate"} and not found.verdicts
    assert all(each.value is None and reason in str(each.not_run) for each in found.measures.values())
    assert not server.asked
