"""`make new`: a recipe of one's own that says what its base says, fits the rows, and refuses what could not be run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.rules_run import check_rule
from handbook_ext.planning.new_recipe import _split, asked_recipe, new_recipe
from handbook_ext.planning.schedule import refuse_idle, schedules_of
from handbook_ext.recipes.run import resolve
from tests.dataset_rows import pair, write
from tests.planning.test_schedule import rows_of
from tests.recipe_folder import ROOT, enter_folder, mine


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def rows(count: int, name: str = "my_pairs") -> str:
    """A folder with so many training rows, and 4 others held out."""
    Path(name).mkdir()
    write(Path(name, "train.jsonl"), [pair(number) for number in range(count)])
    write(Path(name, "test.jsonl"), [pair(number) for number in range(1000, 1004)])
    return name


def made(name: str = "mine", base: str = "tiny-selm", data: str = "my_pairs") -> list[str]:
    """Makes a recipe; returns what is said."""
    return new_recipe(asked_recipe(name, base, data))


def refused(*words: str) -> str:
    """The message by which a recipe is refused; nothing is left behind."""
    before = sorted(Path("recipes").rglob("*"))
    with pytest.raises(UserError) as caught:
        made(*words)
    assert sorted(Path("recipes").rglob("*")) == before
    return str(caught.value)


def test_a_recipe_of_ones_own_fits_its_rows_and_tells_what_to_do_next() -> None:
    said = made(data=rows(60))
    assert said[0] == "rows: 60 to train on, 4 held out for evaluation, 60 demonstrations for SFT; none of 64 read was dropped"
    assert said[1] == "form: prompt, chosen and rejected"
    assert said[2].startswith("lengths: prompt ")
    assert "written: recipes/mine/selm.yaml" in said
    assert "set for these rows: train.global_batch_size 4 (32 before: 15 examples make 4 steps so)" in said
    assert [line.split()[1] for line in said if line.startswith("  make")] == [
        "mine-selm-check", "mine-selm-plan", "mine-selm-iter1", "mine-selm",
    ]  # fmt: skip
    run = resolve("mine-selm")
    refuse_idle(schedules_of(check_rule(run).settings, rows_of(60), 60))  # type: ignore[arg-type]
    assert run.settings.data.train == "my_pairs/train.jsonl"
    assert run.settings.report.title == "mine-selm on my_pairs"


def test_what_is_shown_as_inherited_is_what_the_base_says() -> None:
    made(data=rows(60))
    path = Path("recipes/mine/selm.yaml")
    before, text = resolve("mine-selm").settings, path.read_text()
    shown = re.findall(r"^# ( *[a-z_]+:.*)$", text, re.MULTILINE)
    keys = {line.split(":")[0].strip() for line in shown}
    assert {"beta", "learning_rate", "alpha", "portions", "max_length", "num_completions", "ranker", "name_or_path"} <= keys
    lines = [line for line in text.splitlines() if "path/to/checkpoint" not in line and line != "# model:"]
    path.write_text(re.sub(r"^# ( *[a-z_]+:.*)$", r"\1", "\n".join(lines), flags=re.MULTILINE) + "\n")
    assert resolve("mine-selm").settings == before
    assert "# alpha" not in path.read_text()
    assert len(max(text.splitlines(), key=len)) <= 140


def test_a_setting_that_is_uncommented_and_changed_wins() -> None:
    made(data=rows(60))
    path = Path("recipes/mine/selm.yaml")
    path.write_text(re.sub(r"^#   beta: 1.0 ", "  beta: 0.5 ", path.read_text(), flags=re.MULTILINE))
    assert resolve("mine-selm").settings.train.beta == 0.5


@pytest.mark.parametrize(("name", "file", "goal"), [
    ("", "mine/selm", "mine-selm"), ("mine/dpo", "mine/dpo", "mine-dpo"), ("mine-dpo", "mine/dpo", "mine-dpo"),
    ("ours-try-2", "ours/try-2", "ours-try-2"),
])  # fmt: skip
def test_a_name_is_a_folder_or_a_folder_and_a_method(name: str, file: str, goal: str) -> None:
    asked = asked_recipe(name, "tiny-selm", "my_pairs")
    assert (str(asked.file), asked.name) == (f"recipes/{file}.yaml", goal)


def test_a_recipe_that_is_there_is_never_written_over() -> None:
    made(data=rows(60))
    text = Path("recipes/mine/selm.yaml").read_text()
    assert "recipes/mine/selm.yaml is there already" in refused()
    assert Path("recipes/mine/selm.yaml").read_text() == text


@pytest.mark.parametrize(("words", "message"), [
    (("mine-plan",), "is or ends like a goal"), (("ours-plan",), "is or ends like a goal"),
    (("tiny",), "recipes/tiny holds delivered recipes"),
    (("mine/base",), "holds delivered recipes"), (("tables/x",), "holds delivered recipes"),
    (("mine", "tiny-slem"), r"FROM: no recipe is called 'tiny-slem' \(did you mean 'tiny-selm'\?\)"),
    (("mine", ""), "FROM: name a"),
    (("mine", "tiny-selm", ""), "DATA: name the folder"), (("mine", "tiny-selm-seed3"), "give FROM=tiny-selm"),
    (("mine", "tiny-selm", "nowhere"), "DATA: 'nowhere' is no folder"),
    (("mine", "tiny-selm", "few"), "few has 10 training rows, too few for tiny-selm: iter0 .* give 16 rows or more"),
    (("mine", "tiny-selm", "broken"), r"DATA: broken/train.jsonl:2: not valid JSON"),
    (
        ("mine", "tiny-selm", "empty"),
        "DATA: data.train: empty/train.jsonl: no usable row is left of 1 read; dropped: {'empty chosen': 1}",
    ),
    (("ours", "mine-world", "my_pairs"), "FROM: mine-world is for the dataset tiny_world alone"),
])  # fmt: skip
def test_what_could_not_be_run_is_refused(words: tuple[str, ...], message: str) -> None:
    rows(60)
    rows(10, "few")
    rows(1, "broken")
    with Path("broken/train.jsonl").open("a") as file:
        file.write("{oops\n")
    rows(1, "empty")
    write(Path("empty/train.jsonl"), [{"prompt": "a", "chosen": " ", "rejected": "b"}])
    mine("data: {judge_rows: 5}\n", "world")
    assert re.search(message, refused(*words))


def test_one_file_is_answered_with_a_command_that_splits_it() -> None:
    Path("my pairs.jsonl").write_text("".join(json.dumps(pair(number)) + "\n" for number in range(60)))
    message = refused("mine", "tiny-selm", "my pairs.jsonl")
    command, data = re.search(r"such as by: (.*); then DATA='(.*)'$", message).groups()  # type: ignore[union-attr]
    subprocess.run(["bash", "-c", command], check=True)
    counts = {name: len(Path(data, f"{name}.jsonl").read_text().splitlines()) for name in ("train", "test")}
    assert counts == {"train": 48, "test": 12}
    assert made(data=data)[0].startswith("rows: 48 to train on, 12 held out")


def test_a_parquet_file_is_split_as_well() -> None:
    import datasets

    plain: list[dict[str, Any]] = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(40)]
    Path("all").mkdir()
    datasets.Dataset.from_list(plain).to_parquet("all/train.parquet")
    message = refused("mine", "tiny-selm", "all")
    assert message.startswith("DATA: 'all' has no test.jsonl, test.json or test.parquet")
    command, data = re.search(r"training rows by: (.*); then DATA=(.*)$", message).groups()  # type: ignore[union-attr]
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/bin/python").symlink_to(sys.executable)
    subprocess.run(["bash", "-c", command], check=True, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)})
    assert made(data=data)[0].startswith("rows: 32 to train on, 8 held out")


def test_unusable_rows_are_counted_and_the_recipe_drops_them() -> None:
    write(
        Path(rows(60), "train.jsonl"), [pair(number) for number in range(60)] + [{"prompt": "a", "chosen": "", "rejected": "b"}]
    )
    assert made()[0].endswith("1 of 65 read were dropped: empty chosen 1")
    data = resolve("mine-selm").settings.data
    assert (data.empty_completions, data.long_prompts) == ("drop", "drop")


def test_delivered_bases_on_a_checkpoint_make_recipes_as_well(folder: Path) -> None:
    (folder / "recipes/smollm2").symlink_to(ROOT / "recipes/smollm2")
    made("mine", "smollm2-selm", rows(60))
    text = Path("recipes/mine/selm.yaml").read_text()
    assert "#   name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct" in text
    assert "tiny_world" not in text
    run = resolve("mine-selm")
    assert (run.settings.train.global_batch_size, run.settings.rank.fit.global_batch_size) == (4, 8)


@pytest.mark.parametrize(("count", "held"), [(3, 1), (10, 2), (1500, 300), (9000, 300)])
def test_a_proposed_split_holds_out_a_fifth_at_least_one_row_and_300_at_most(count: int, held: int) -> None:
    Path("all.jsonl").write_text("{}\n" * count)
    assert f"head -n {held} " in _split(Path("all.jsonl"), Path("out"))


def test_a_training_of_many_epochs_needs_a_full_batch_as_well() -> None:
    mine("train: {num_train_epochs: 8, per_device_train_batch_size: 2}\n", "long")
    assert any(line.startswith("set for these rows: train.global_batch_size") for line in made("ours", "mine-long", rows(60)))
    run = resolve("ours-long")
    refuse_idle(schedules_of(check_rule(run).settings, rows_of(60), 60))  # type: ignore[arg-type]
    assert run.settings.train.per_device_train_batch_size == 2  # As its base says, since it fits.


@pytest.mark.parametrize(("most", "told"), [(61, True), (62, False)])
def test_a_limit_on_rows_that_was_met_is_told_whatever_was_dropped(most: int, told: bool) -> None:
    mine(f"data: {{train_rows: {most}}}\n", "some")
    write(Path(rows(60), "train.jsonl"), [*map(pair, range(60)), {"prompt": "a", "chosen": "", "rejected": "b"}])
    said = made("ours", "mine-some")
    assert (f"note: data.train_rows reads the first {most} rows at most; null reads all" in said) is told
