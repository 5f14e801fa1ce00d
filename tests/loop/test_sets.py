"""Prompt sets through the loop: answers in turns, grades by a real server that dies halfway, contamination, no judge."""

import json
from pathlib import Path

import pytest

from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import OfflinePair
from handbook_ext.core.set_records import SetAnswer, SetPrompt
from handbook_ext.evaluation.set_evaluation import read_set_evaluation
from tests.judging.rule_judge import GradingServer, grading_server, reply
from tests.workspace import MICRO, Workspace

QUESTIONS = [
    {"question_id": 7, "category": "math", "turns": ["name red things", "name blue things"], "reference": ["rose", "sky"]},
    {"question_id": 8, "category": "writing", "turns": ["write of the sea", "shorter"]},
    {"question_id": 9, "category": "writing", "turns": ["write of the sun", "longer"]},
]
OTHERS = [{"question_id": each["question_id"], "choices": [{"turns": ["a stored answer"]}]} for each in QUESTIONS]


def recipe(judge: str | None, *, more: str = "") -> str:
    stated = "null" if judge is None else f"{{model: m, base_url: '{judge}', max_retries: 0, concurrency: 1}}"
    return f"""{MICRO}
benchmarks:
  judge: {stated}
  {more}
  sets:
    bench: {{source: bench.jsonl, measures: [mt_bench], max_new_tokens: 6, temperatures: {{writing: 0.7}}, judge_runs: 2}}
    small: {{source: bench.jsonl, rows: 2, measures: [single, pairwise], outputs: {{other: others.jsonl}}, max_new_tokens: 5}}
"""


def workspace(folder: Path, text: str) -> Workspace:
    space = Workspace(folder, text)
    for name, rows in (("bench", QUESTIONS), ("others", OTHERS)):
        path = folder / "recipes" / "mine" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return space


def _points(text: str) -> float | None:
    """Returns the points that the server gives an answer."""
    return float(reply(f"<answer>\n{text}\n</answer>").split("[[")[1][:-2]) if text else None


@pytest.fixture(scope="module")
def server() -> GradingServer:
    with grading_server() as found:
        yield found


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, server: GradingServer) -> Workspace:
    """A run whose policies were evaluated by a judge that died once."""
    space = workspace(tmp_path_factory.mktemp("sets"), recipe(server.url))
    server.dies_after = 5
    commands = space.commands("mine-micro-eval")
    failed = 0
    for command in commands:
        status, said = space.execute(command)
        if status:
            failed += 1
            [line] = [each for each in said.splitlines() if each.startswith("error: ")]
            assert line.startswith("error: benchmarks.judge: ") and "the key has run out" in line
            stopped = next(space.folder.glob("runs/mine-micro/*/*/.eval.json.partial/stopped.json"))
            assert json.loads(stopped.read_text())["replies"] == 5
            server.dies_after = None
            assert space.execute(command)[0] == 0
    assert failed == 1
    return space


def test_a_repeat_asks_for_the_rest_and_nothing_twice(evaluated: Workspace, server: GradingServer) -> None:
    runs = [server.asked.count(question) for question in set(server.asked)]
    # Two runs of the judge ask the questions of `bench` twice; an answer that two policies share is asked once more by none.
    assert max(runs) == 2
    single = [question for question in set(server.asked) if "<answer-a>" in question]
    assert all(server.asked.count(question) == 1 for question in single)


def test_a_second_turn_is_asked_after_the_first_answer(evaluated: Workspace, server: GradingServer) -> None:
    folder = evaluated.folder / "runs/mine-micro/iter1/bench"
    answers = {row.prompt_id: row for row in read_rows(folder / "answers.jsonl", SetAnswer)}
    assert [*answers] == ["7", "8", "9"] and all(len(row.answers) == 2 for row in answers.values())
    first = answers["7"].answers[0].text
    assert any(f"user: name red things\nassistant: {first}\nuser: name blue things" in question for question in server.asked)


def test_reference_answers_are_shown_where_there_are_some(evaluated: Workspace, server: GradingServer) -> None:
    with_reference = [question for question in server.asked if "<reference>" in question]
    assert with_reference and all("rose" in question or "sky" in question for question in with_reference)
    assert not any("<reference>" in question for question in server.asked if "write of the s" in question)


def test_measures_are_the_means_of_their_verdicts(evaluated: Workspace) -> None:
    found = read_set_evaluation(evaluated.folder / "runs/mine-micro/iter1/bench/eval.json")
    texts = [[turn.text for turn in row.answers] for row in found.rows]
    points = [[_points(text) for text in row] for row in texts]
    for name, turn in (("turn1", 0), ("turn2", 1)):
        known = [row[turn] for row in points if row[turn] is not None]
        assert found.measures[name].value == pytest.approx(sum(known) / len(known)) if known else True
        assert found.measures[name].runs == 2 and found.measures[name].judge.local
    assert found.decoding.temperatures == {"writing": 0.7} and found.set.of == 3


def test_a_policy_is_compared_with_the_start_and_with_stored_outputs(evaluated: Workspace) -> None:
    started = read_set_evaluation(evaluated.folder / "runs/mine-micro/sft/small/eval.json")
    trained = read_set_evaluation(evaluated.folder / "runs/mine-micro/iter1/small/eval.json")
    assert {*started.measures} == {"single", "vs_other"} and {*trained.measures} == {"single", "vs_other", "vs_start"}
    won = [1.0 if len(row.answers[0].text) > len("a stored answer") else 0.0 for row in trained.rows]
    tied = [len(row.answers[0].text) == len("a stored answer") for row in trained.rows]
    won = [0.5 if same else value for value, same in zip(won, tied, strict=True)]
    assert trained.measures["vs_other"].value == pytest.approx(100 * sum(won) / len(won))
    assert trained.set.prompts == 2 and trained.set.of == 3


def test_a_repeat_of_a_finished_evaluation_does_nothing(evaluated: Workspace, server: GradingServer) -> None:
    before = len(server.asked)
    done = evaluated.make("-q", "mine-micro-eval")
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == before


def test_without_a_judge_measures_are_not_run_and_say_why(evaluated: Workspace, server: GradingServer) -> None:
    path, before = evaluated.folder / "runs/mine-micro/iter1/small/eval.json", len(server.asked)
    graded = path.read_bytes()
    done = evaluated.make("-n", "mine-micro-iter1-eval", "SETS=small", "SET=benchmarks.judge=null")
    assert "grade_answers.py runs/mine-micro/iter1/small" in done.stdout and "answer_prompts" not in done.stdout
    assert evaluated.execute("scripts/grade_answers.py runs/mine-micro/iter1/small")[0] == 0
    found = read_set_evaluation(path)
    assert {each.value for each in found.measures.values()} == {None} and found.rows[0].answers
    assert all("benchmarks.judge" in str(each.not_run) for each in found.measures.values())
    # With the judge again nothing is asked: its replies were kept.
    evaluated.make("-n", "mine-micro-iter1-eval", "SETS=small")
    assert evaluated.execute("scripts/grade_answers.py runs/mine-micro/iter1/small")[0] == 0
    assert path.read_bytes() == graded and len(server.asked) == before


def test_a_server_that_is_no_judge_ends_the_stage_and_is_asked_again(evaluated: Workspace, server: GradingServer) -> None:
    path = evaluated.folder / "runs/mine-micro/iter1/small/eval.json"
    graded, command = path.read_bytes(), "scripts/grade_answers.py runs/mine-micro/iter1/small"
    evaluated.make(
        "-n", "mine-micro-iter1-eval", "SETS=small", "SET=benchmarks.judge.model=another benchmarks.judge.max_retries=0"
    )
    server.silent = True
    status, said = evaluated.execute(command)
    server.silent = False
    assert status == 2 and "with a reply that can be used" in said and "Traceback" not in said
    before = len(server.asked)
    assert evaluated.execute(command)[0] == 0 and len(server.asked) > before
    evaluated.make("-n", "mine-micro-iter1-eval", "SETS=small")
    assert evaluated.execute(command)[0] == 0 and path.read_bytes() == graded


def test_equal_answers_of_a_policy_that_was_trained_again_are_an_evaluation_of_that_policy(evaluated: Workspace) -> None:
    folder = evaluated.folder / "runs/mine-micro/iter1/small"
    manifest, command = folder / "answers.manifest.json", "scripts/grade_answers.py runs/mine-micro/iter1/small"
    kept, graded = manifest.read_text(), (folder / "eval.json").read_bytes()
    manifest.write_text(json.dumps(json.loads(kept) | {"policy": "trained again"}))
    assert evaluated.execute(command)[0] == 0
    assert read_set_evaluation(folder / "eval.json").policy.sha256 == "trained again"
    manifest.write_text(kept)
    assert evaluated.execute(command)[0] == 0 and (folder / "eval.json").read_bytes() == graded


def test_training_prompts_among_a_set_are_refused_or_marked(tmp_path: Path, evaluated: Workspace) -> None:
    pair = read_rows(evaluated.folder / "runs/mine-micro/data/rows/train.jsonl", OfflinePair)[3]
    rows = [*QUESTIONS, {"question_id": 10, "turns": [f"  {pair.prompt[0]['content'].upper()} "]}]
    path = evaluated.folder / "recipes/mine/bench.jsonl"
    kept = path.read_text()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        evaluated.make("-n", "mine-micro-eval")
        command = f"scripts/prepare_prompts.py {'runs/mine-micro/prompts/bench'}"
        status, said = evaluated.execute(command)
        assert status == 2 and "1 of the 4 prompts of bench are among the training prompts, such as '10'" in said
        evaluated.write(recipe(None, more="contaminated: mark"))
        evaluated.make("-n", "mine-micro-eval")
        status, said = evaluated.execute(command)
        assert status == 0, said
        found = read_rows(evaluated.folder / "runs/mine-micro/prompts/bench/prompts.jsonl", SetPrompt)
        assert [each.seen for each in found] == [False, False, False, True]
    finally:
        path.write_text(kept)
