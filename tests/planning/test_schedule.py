"""Optimizer steps and learning rates before a training: those that transformers will take, and a refusal of none at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.graph.rules_run import check_rule
from handbook_ext.graph.stages import CheckStage
from handbook_ext.planning.schedule import notes_of, refuse_idle, schedules_of
from handbook_ext.recipes.run import resolve
from handbook_ext.selection.rules import most_pairs
from tests.recipe_folder import enter_folder, mine
from tests.workspace import MICRO, SELM, SERA, Workspace, changed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def settings_of(text: str) -> CheckStage:
    """The settings of the check of a recipe."""
    settings = check_rule(mine(text)).settings
    assert isinstance(settings, CheckStage)
    return settings


def rows_of(count: int) -> list[OfflinePair]:
    """So many rows of raw data of which none was dropped."""
    row = OfflinePair.of("p", user("a"), assistant("b"), assistant("c"), raw_rows=count)
    return [row.model_copy(update={"raw_row": number}) for number in range(count)]


OWN = "data: {dataset: some/pairs}\n"  # The README's recipe for own data: a reward model is fitted first.


@pytest.mark.parametrize(("rows", "names"), [(60, ["train"]), (128, ["train"]), (10, ["rank.fit", "train"])])
def test_rates_that_are_all_zero_are_refused_with_the_reason(rows: int, names: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        refuse_idle(schedules_of(settings_of(OWN), rows_of(rows), rows))
    assert len(caught.value.args) == len(names)
    for name, message in zip(names, caught.value.args, strict=True):
        assert f"{name}.global_batch_size 32, and warm-up takes 1 optimizer step; give a smaller {name}" in message
    last = caught.value.args[-1]
    assert last.startswith("iter0, iter1, iter2, iter3: nothing would be learned, since the learning rate is 0 in its only ")
    assert f"{rows // 4} rows of {rows} in 4 portions make {rows // 4} examples at most" in last
    assert f"such as {max(1, rows // 16)} (and" in last
    assert last.endswith("fewer data.portions, more rows, or no warm-up (train.warmup_ratio: 0)")


@pytest.mark.parametrize("change", [
    "train: {global_batch_size: 8}", "train: {warmup_ratio: 0}", "data: {dataset: some/pairs, portions: 1}\niterations: "
    "{iter0: {train: {global_batch_size: 16}}, iter1: null, iter2: null, iter3: null}",
])  # fmt: skip
def test_what_the_refusal_proposes_helps(change: str) -> None:
    text = change if change.startswith("data:") else f"{OWN}{change}"
    schedules = schedules_of(settings_of(text), rows_of(60), 60)
    refuse_idle(schedules)
    assert all(each.learning for each in schedules)


def test_delivered_and_test_recipes_are_not_refused() -> None:
    for text in (MICRO, SELM, SERA):
        settings = settings_of(text.strip() + "\n")
        count = 49 if "train_rows: 49" in text else 48
        refuse_idle(schedules_of(settings, rows_of(count), 48))
    settings = check_rule(resolve("tiny-selm")).settings
    assert isinstance(settings, CheckStage)
    schedules = schedules_of(settings, rows_of(4000), 20000)
    assert notes_of(schedules) == []
    assert [(each.name, len(each.rates), each.warmup_steps) for each in schedules] == [
        ("sft", 1250, 100), *((f"iter{number}", 32, 4) for number in range(4)),
    ]  # fmt: skip
    assert max(schedules[-1].rates) == pytest.approx(1e-4)  # learning_rate_factor 0.5
    assert schedules[1].line == (
        "iter0: 1,000 rows of 4,000 in 4 portions, up to 1,000 pairs, 32 optimizer steps of 32, 4 of warm-up, rate up to 0.0002"
    )


def test_few_steps_of_a_positive_rate_are_a_note() -> None:
    schedules = schedules_of(settings_of(OWN), rows_of(200), 200)
    refuse_idle(schedules)
    [note] = notes_of(schedules)
    assert "above 0: iter0 1, iter1 1, iter2 1, iter3 1; a smaller global_batch_size or more rows" in note


def test_rows_that_make_no_portions_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.portions: 3 rows cannot make 4 portions; lower it or give more rows"):
        schedules_of(settings_of(OWN), rows_of(3), 3)


def test_a_dropped_row_is_missing_in_its_own_portion() -> None:
    rows = [row for row in rows_of(200) if row.raw_row not in range(30)]
    found = {each.name: each.rows for each in schedules_of(settings_of(OWN), rows, 200)}
    assert [found[f"iter{number}"] for number in range(4)] == [20, 50, 50, 50]


def test_sera_makes_the_pairs_of_both_shares_at_most() -> None:
    for keep, bootstrap, most in ((0.7, 0.3, 48), (0.5, 0.0, 24), (1.0, 1.0, 96)):
        select = mine(f"select: {{rule: sera, keep: {keep}, bootstrap: {bootstrap}}}\n{SERA_REST}").settings.select
        assert most_pairs(48, select) == most
    assert most_pairs(48, mine(OWN).settings.select) == 48


SERA_REST = "train: {alpha: 0}\niterations: {iter0: {select: {rule: dataset}}}\ndata: {portions: 1}\n"


def test_the_rates_are_those_that_training_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path / "clone", changed(MICRO, train="num_train_epochs: 1.5"))
    workspace.run("mine-micro-iter0")
    run = workspace.folder / "runs/mine-micro"
    found = json.loads((run / "check.json").read_text())
    assert found["rows"] == {"train": 48, "test": 8, "sft": 48}
    assert found["truncated"] is None
    assert any("SFT makes its tokenizer" in line for line in found["lines"])
    by_name = {each["training"]: each for each in found["schedules"]}
    for name in ("sft", "iter0"):
        state = json.loads((run / name / "policy/trainer_state.json").read_text())
        logged = [row["learning_rate"] for row in state["log_history"] if "learning_rate" in row]
        assert by_name[name]["learning_rates"] == pytest.approx(logged, rel=1e-12)
        assert by_name[name]["steps"] == state["global_step"] == len(logged)
    assert workspace.commands("mine-micro-iter0") == []
    (run / "check.json").unlink()
    assert [command.split("scripts/")[1] for command in workspace.commands("mine-micro-iter0")] == [
        "check_run.py runs/mine-micro"
    ]


def test_sixty_rows_of_own_data_are_refused_before_anything_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "clone", "base: ../tiny/base.yaml\ndata: {train: train.jsonl, test: test.jsonl}\n")
    rows = [{"prompt": f"question {n}", "chosen": f"a good answer {n}", "rejected": f"bad {n}"} for n in range(60)]
    for name in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (workspace.folder / f"recipes/mine/{name}.jsonl").write_text(text)
    commands = workspace.commands("mine-micro-iter0")
    data, check = (next(each for each in commands if name in each) for name in ("prepare_data", "check_run"))
    assert workspace.execute(data)[0] == 0
    status, said = workspace.execute(check)
    assert status == 2
    assert said.startswith("error: iter0, iter1, iter2, iter3: nothing would be learned")
    assert said.count("error:") == 1 and said.endswith("\ncheck has failed; log: runs/mine-micro/check.log\n")
    assert not (workspace.folder / "runs/mine-micro/check.json").exists()
    done = workspace.make("mine-micro-check", "SET=train.global_batch_size=8 train.warmup_ratio=0")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert "rows: 60 train, 60 test, 60 sft" in shown
    assert any(line.startswith("iter3: 15 rows of 60 in 4 portions, up to 15 pairs, 2 optimizer steps of 8") for line in shown)
    assert not list(workspace.folder.rglob("policy"))
