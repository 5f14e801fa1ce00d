"""A newcomer's first hour: rows of one's own, a recipe by `make new`, a policy that changed, a report that shows its answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.workspace import MICRO, Workspace, changed

TOPICS = ("bread", "rain", "a long walk", "the night sky", "old books")


def chat_rows(path: Path, count: int, first: int = 0) -> None:
    """Writes so many rows of chat as messages, no two with the same prompt."""
    rows = []
    for number in range(first, first + count):
        asked = [{"role": "user", "content": f"Tell me {number} things about {TOPICS[number % 5]}, please."}]
        good, bad = f"Here are {number}: it is good, and it is old.", f"I do not know {TOPICS[number % 3]}."
        answers = {name: [*asked, {"role": "assistant", "content": text}] for name, text in (("chosen", good), ("rejected", bad))}
        rows.append(json.dumps({"prompt": asked[0]["content"], **answers}))
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone with 60 and with 10 rows of chat, each with 8 held-out ones, and a new recipe on the 60, which has run."""
    recipe = changed(MICRO, train="learning_rate: 2e-3", evaluate="temperatures: [0.0], implicit_reward: false")
    workspace = Workspace(tmp_path_factory.mktemp("hour"), recipe)
    for name, count in (("sixty", 60), ("ten", 10)):
        chat_rows(workspace.folder / name / "train.jsonl", count)
        chat_rows(workspace.folder / name / "test.jsonl", 8, first=500)
    status, said = workspace.execute("scripts/new_recipe.py --name=ours --from=mine-micro --data=sixty")
    assert status == 0, said
    assert "make ours-micro-check" in said
    workspace.run("ours-micro")
    return workspace


def test_sixty_rows_take_the_steps_that_the_check_has_told_and_change_the_weights(workspace: Workspace) -> None:
    run = workspace.folder / "runs/ours-micro"
    told = {each["training"]: each["steps"] for each in json.loads((run / "check.json").read_text())["schedules"]}
    weights = [(run / "sft/policy/model.safetensors").read_bytes()]
    for name in ("iter0", "iter1"):
        manifest = json.loads((run / name / "policy/manifest.json").read_text())
        assert told[name] - 1 <= manifest["steps"] <= told[name] == 6
        weights.append((run / name / "policy/model.safetensors").read_bytes())
    assert len(set(weights)) == 3


def test_the_report_shows_what_both_policies_answer_to_the_same_prompts(workspace: Workspace) -> None:
    report = workspace.folder / "runs/ours-micro/report"
    page = (report / "report.html").read_text()
    answers = json.loads((report / "summary.json").read_text())["answers"]
    assert {tuple(answer["policy"] for answer in each["answers"]) for each in answers["first"]} == {("sft", "iter1")}
    assert all(each["prompt"] in page for each in answers["first"])
    assert "noise.The" not in page
    assert "first what sft answers, the policy that the run starts from, then what iter1 does, the last one" in page


def test_the_console_tells_the_steps_of_a_training(workspace: Workspace) -> None:
    (workspace.folder / "runs/ours-micro/iter1/policy/manifest.json").unlink()
    [command] = [each for each in workspace.commands("ours-micro-iter1") if "train_policy" in each]
    status, said = workspace.execute(command)
    assert status == 0
    assert re.search(r"iter1: [56] optimizer steps on \d+ pairs in batches of 4", said)


def test_ten_rows_are_refused_before_anything_trains(workspace: Workspace) -> None:
    commands = workspace.make("-n", "mine-micro-iter1", "DATA=ten").stdout.splitlines()
    data, check = (next(each for each in commands if name in each) for name in ("prepare_data", "check_run"))
    assert workspace.execute(data)[0] == 0
    status, said = workspace.execute(check)
    assert status == 2
    assert "error: iter0, iter1: 5 rows of 10 in 2 portions make 5 pairs at most, and one optimizer step takes 8" in said
    assert "set train.global_batch_size and train.per_device_train_batch_size to 1 (5 optimizer steps)" in said
    [folder] = (workspace.folder / "runs").glob("mine-micro+data-ten-*")
    assert not list(folder.rglob("policy"))
    assert not (folder / "check.json").exists()
