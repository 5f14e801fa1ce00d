"""Optimizer steps and learning rates before a training: those that transformers will take, and a refusal of none at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.graph.rules_run import check_rule
from handbook_ext.graph.stages import CheckStage
from handbook_ext.planning.schedule import fitting_batch, notes_of, refuse_idle, schedules_of
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


def test_a_batch_that_no_iteration_fills_is_refused_with_the_number_to_set() -> None:
    for warm_up in ("", "train: {warmup_ratio: 0}\n"):  # Without warm-up the one step would train on half a batch.
        with pytest.raises(UserError) as caught:
            refuse_idle(schedules_of(settings_of(OWN + warm_up), rows_of(60), 60))
        assert caught.value.args == (
            "iter0, iter1, iter2, iter3: 15 rows of 60 in 4 portions make 15 pairs at most, and one optimizer step takes 32 "
            "(train.global_batch_size); set train.global_batch_size and train.per_device_train_batch_size to 4 (4 optimizer "
            "steps), lower data.portions, or give 128 rows",
        )


def test_ten_rows_are_refused_with_how_many_it_takes() -> None:
    with pytest.raises(UserError) as caught:
        refuse_idle(schedules_of(settings_of(OWN), rows_of(10), 10))
    fit, train = caught.value.args
    assert "rank.fit.global_batch_size 32, and warm-up takes 1 optimizer step; give a smaller rank.fit" in fit
    assert "2 rows of 10 in 4 portions make 2 pairs at most, and one optimizer step takes 32" in train
    assert train.endswith("fewer than 4 steps: give 16 rows at least, or fewer data.portions (and iterations)")


def test_rates_that_are_all_zero_are_refused_with_the_reason() -> None:
    with pytest.raises(UserError) as caught:
        refuse_idle(schedules_of(settings_of(OWN), rows_of(128), 128))
    [message] = caught.value.args
    assert message.startswith("iter0, iter1, iter2, iter3: nothing would be learned, since the learning rate is 0 in its only ")
    assert "32 rows of 128 in 4 portions make 32 examples at most" in message
    assert "warm-up takes 1 optimizer step; give a smaller train.global_batch_size, such as 8 (and" in message
    assert message.endswith("fewer data.portions, more rows, or no warm-up (train.warmup_ratio: 0)")


@pytest.mark.parametrize(("examples", "batch"), [(3, None), (4, 1), (7, 2), (15, 4), (20, 4), (64, 16), (1000, 256)])
def test_a_proposed_batch_makes_four_steps_or_more(examples: int, batch: int | None) -> None:
    assert fitting_batch(examples) == batch


@pytest.mark.parametrize("change", [
    "train: {global_batch_size: 4, per_device_train_batch_size: 4}", "train: {global_batch_size: 8, warmup_ratio: 0}",
    "data: {dataset: some/pairs, portions: 1}\niterations: "
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
    schedules = schedules_of(settings, rows_of(8000), 38000)
    assert notes_of(schedules) == []
    assert [(each.name, len(each.rates), each.warmup_steps) for each in schedules] == [
        ("sft", 1782, 143), *((f"iter{number}", 63, 7) for number in range(4)),
    ]  # fmt: skip
    assert max(schedules[-1].rates) == pytest.approx(1e-4)  # learning_rate_factor 0.5
    assert schedules[1].line == (
        "iter0: 2,000 rows of 8,000 in 4 portions, up to 2,000 pairs, 63 optimizer steps of 32, 7 of warm-up, rate up to 0.0002"
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
    assert said.startswith("error: iter0, iter1, iter2, iter3: 15 rows of 60 in 4 portions make 15 pairs at most")
    assert said.count("error:") == 1 and said.endswith("\ncheck has failed; log: runs/mine-micro/check.log\n")
    assert not (workspace.folder / "runs/mine-micro/check.json").exists()
    done = workspace.make("mine-micro-check", "SET=train.global_batch_size=8 train.warmup_ratio=0")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    first = next(place for place, line in enumerate(shown) if line.endswith(" can start:"))
    assert shown[first + 1 : first + 4] == [
        "rows: 60 to train on, 60 held out for evaluation, 60 demonstrations for SFT; none of 120 read was dropped",
        "prompts: none of 60 is longer than the 1,024 tokens of train.max_length (estimated)",
        "steps: 2 optimizer steps in each of iter0, iter1, iter2, iter3: up to 15 pairs in batches of 8; each iteration gets 1/4 "
        "of the rows (data.portions), here 15",
    ]
    assert "rows: 60 train, 60 test, 60 sft" in shown
    assert any(line.startswith("iter3: 15 rows of 60 in 4 portions, up to 15 pairs, 2 optimizer steps of 8") for line in shown)
    assert not list(workspace.folder.rglob("policy"))
