"""Verdicts to measures: means, standard errors, what is missing, both orders of a comparison."""

import math
from collections.abc import Callable, Sequence

import pytest

from handbook_ext.core.records import user
from handbook_ext.core.set_records import SetAnswer, SetPrompt, SetTurn
from handbook_ext.evaluation.grading import Judged, compared, graded, measured
from handbook_ext.evaluation.set_evaluation import Grader

JUDGE = Grader(model="m", kind="single")


class Client:
    """Replies by a function of the question, and counts."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.reply, self.asked = reply, []

    def ask(self, questions: Sequence[str]) -> list[str]:
        self.asked += questions
        return [self.reply(each) for each in questions]


def prompt(name: str, *follow_ups: str, references: Sequence[str] = ()) -> SetPrompt:
    return SetPrompt(prompt_id=name, prompt=user(f"question {name}"), follow_ups=list(follow_ups), references=list(references))


def answer(name: str, *texts: str) -> SetAnswer:
    return SetAnswer(prompt_id=name, answers=[SetTurn(text=text, tokens=3, finish_reason="stop") for text in texts], seed=1)


def test_every_turn_of_every_run_is_graded_with_the_conversation_before_it() -> None:
    runs = [Client(lambda question: f"[[{2 + ('more' in question)}]]"), Client(lambda question: "[[9]]")]
    prompts = [prompt("a", "more", references=["the-truth"]), prompt("b")]
    found = graded(prompts, [answer("a", "one", "two"), answer("b", "three")], runs)
    assert found.verdicts == [[[2.0, 3.0], [9.0, 9.0]], [[2.0], [9.0]]]
    first, second, third = runs[0].asked
    assert "the-truth" in first and "the-truth" not in second and "<reference>" not in third
    assert "user: question a\nassistant: one\nuser: more" in second and "two" in second and "two" not in first


@pytest.mark.parametrize(
    ("forward", "backward", "won"),
    [("A", "B", 1.0), ("B", "A", 0.0), ("A", "A", 0.5), ("B", "B", 0.5), ("C", "C", 0.5), ("A", "C", 0.5),
     ("A", "?", None), ("?", "B", None)],
)  # fmt: skip
def test_both_orders_decide_together(forward: str, backward: str, won: float | None) -> None:
    client = Client(lambda question: f"[[{forward if question.index('ours') < question.index('theirs') else backward}]]")
    found = compared([prompt("a")], ["ours"], ["theirs"], [client])
    assert found.verdicts == [[[won]]] and len(client.asked) == 2


def test_equal_answers_are_a_tie_that_nobody_is_asked_about() -> None:
    client = Client(lambda question: "[[A]]" if question.index("x1") < question.index("y1") else "[[B]]")
    found = compared([prompt("a"), prompt("b"), prompt("c")], ["same", "x1", "same"], ["same", "y1", "same"], [client])
    assert found.verdicts == [[[0.5]], [[1.0]], [[0.5]]] and len(client.asked) == 2


def test_a_measure_is_over_prompts_and_its_error_too() -> None:
    judged = Judged("single", [[[1.0, 3.0], [2.0, 2.0]], [[5.0, 7.0], [6.0, 6.0]], [[9.0, 1.0], [5.0, 5.0]]])
    found = measured(judged, JUDGE, "1-10", runs=2)
    means = [2.0, 6.0, 5.0]
    mean = sum(means) / 3
    assert found.value == pytest.approx(mean) and found.n == 3 and found.missing == 0 and found.runs == 2
    assert found.standard_error == pytest.approx(math.sqrt(sum((each - mean) ** 2 for each in means) / 2 / 3))
    assert measured(judged, JUDGE, "1-10", turn=1).value == pytest.approx((2.5 + 6.5 + 3.0) / 3)


def test_what_nobody_could_read_is_counted_and_left_out() -> None:
    judged = Judged("single", [[[1.0, None]], [[None, None]], [[4.0, 4.0]]])
    found = measured(judged, JUDGE, "1-10")
    assert (found.value, found.n, found.missing) == (2.5, 2, 3)
    second = measured(judged, JUDGE, "1-10", turn=1)
    assert (second.value, second.n, second.missing, second.standard_error) == (4.0, 1, 2, None)


def test_a_judge_that_said_nothing_gives_no_value_and_a_reason() -> None:
    found = measured(Judged("single", [[[None]], [[None]]]), JUDGE, "1-10")
    assert found.value is None and found.missing == 2 and "no readable verdict" in str(found.not_run)


def test_a_win_rate_is_in_percent_with_its_error() -> None:
    found = measured(Judged("pairwise", [[[1.0]], [[0.5]], [[0.0]], [[1.0]]]), JUDGE, "%", scale=100.0)
    assert found.value == pytest.approx(62.5) and found.standard_error == pytest.approx(100 * math.sqrt(0.6875 / 3 / 4))


def test_each_turn_is_graded_beside_its_own_reference() -> None:
    client = Client(lambda question: "[[5]]")
    graded([prompt("a", "more", references=["first-truth", "second-truth"])], [answer("a", "one", "two")], [client])
    first, second = client.asked
    assert "first-truth" in first and "second-truth" not in first
    assert "second-truth" in second and "first-truth" not in second
