"""What determines each stage of a run, the files that say it, and the script that writes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.settings import TrainSettings
from handbook_ext.recipes.writing import (
    Run,
    load_stage,
    make_variables,
    resolve,
    stage_settings,
    write_run,
)
from tests.recipe_folder import ROOT, enter_folder, mine

SCRIPT = ROOT / "scripts" / "resolve_recipe.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


HEAD = ["stage", "recipe", "seed"]
ITER = [*HEAD, "iteration"]


def test_each_stage_gets_exactly_what_determines_it(folder: Path) -> None:
    stages = stage_settings(mine("data: {dataset: some/pairs}\n"))
    expected = {
        "data/data.yaml": [*HEAD, "needs", "data"],
        "sft/sft.yaml": [*HEAD, "model", "long_prompts", "empty_completions", "sft"],
        "ranker/ranker.yaml": [*HEAD, "policy_from", "model", "rank"],
        "sft/evaluate.yaml": ["stage", "format", *ITER[1:], "policy_from", "model", "rank", "evaluate", "limits"],
        "iter0/select.yaml": [*ITER, "policy_from", "reads", "portion", "select"],
        "iter0/score.yaml": [*ITER, "policy_from", "model", "score", "limits", "plan"],
        "iter0/train.yaml": [*ITER, "policy_from", "model", "train", "limits"],
        "iter0/evaluate.yaml": ["stage", "format", *ITER[1:], "policy_from", "first", "model", "rank", "evaluate", "limits"],
        "iter1/generate.yaml": [*ITER, "policy_from", "portion", "model", "generate", "limits"],
        "iter1/rank.yaml": [*ITER, "model", "rank"],
        "report.yaml": [*HEAD, "iterations", "report"],
    }
    assert {path: list(stages[path]) for path in expected} == expected
    assert not {"iter0/generate.yaml", "iter0/rank.yaml"} & set(stages)
    assert all(path == "report.yaml" or Path(path).stem in (stages[path]["stage"], "data") for path in stages)
    assert stages["ranker/ranker.yaml"]["rank"].keys() == {"max_length", "fit"}
    assert (stages["iter0/select.yaml"]["reads"], stages["iter1/select.yaml"]["reads"]) == ([], ["rankings.jsonl"])
    assert stages["iter2/generate.yaml"]["portion"] == {"index": 2, "of": 4}
    assert [stages[f"iter{number}/score.yaml"]["plan"]["explore"] for number in (0, 1)] == [False, True]
    assert stages["iter3/evaluate.yaml"]["policy_from"] == "iter3"
    assert stages["report.yaml"]["iterations"] == ["sft", "iter0", "iter1", "iter2", "iter3"]


def changed_stages(before: Run, after: Run) -> set[str]:
    """The settings files in which two runs of one name differ."""
    first, second = stage_settings(before), stage_settings(after)
    return {path for path in first if first[path] != second.get(path)}


def test_one_setting_changes_only_its_stages(folder: Path) -> None:
    base = mine("seed: 1\n")
    late = mine("iterations: {iter3: {train: {learning_rate: 3.3e-5}}}\n")
    assert changed_stages(base, late) == {"iter3/train.yaml"}
    sampling = mine("iterations: {iter2: {generate: {temperature: 1.23}}}\n")
    assert changed_stages(base, sampling) == {"iter2/generate.yaml"}
    assert changed_stages(base, mine("report: {title: x}\n")) == {"report.yaml"}
    assert changed_stages(base, mine("launch: gpu\n")) == set()
    batch = mine("iterations: {iter1: {train: {global_batch_size: 4096}}}\n")
    assert changed_stages(base, batch) == {"iter1/train.yaml", "iter1/score.yaml"}
    assert "iter0/train.yaml" in changed_stages(base, mine("train: {num_train_epochs: 7}\n"))
    assert changed_stages(base, mine("train: {weight_decay: 0}\nscore: {}\n")) == set()


def test_the_files_say_what_was_resolved_and_know_no_lines(folder: Path) -> None:
    run = resolve("tiny-selm")
    write_run(run, Path("runs"))
    for path, settings in stage_settings(run).items():
        text = (Path("runs/tiny-selm") / path).read_text()
        assert text.splitlines()[0] == "# resolved from recipe tiny-selm; edit the recipe, not this file"
        assert ".yaml:" not in text
        loaded = load_stage(Path("runs/tiny-selm") / path)
        assert loaded == settings == yaml.safe_load(text)
        assert list(loaded) == list(settings)
    TrainSettings(**load_stage(Path("runs/tiny-selm/iter1/train.yaml"))["train"])
    with pytest.raises(UserError, match="settings of this stage are missing; run make"):
        load_stage(Path("runs/tiny-selm/iter9/train.yaml"))


def test_settings_are_rewritten_only_when_they_change(folder: Path) -> None:
    text = "train: {learning_rate: 1e-4}\n"
    first = write_run(mine(text), Path("runs"))
    assert {str(path.relative_to("runs/mine-selm")) for path in first} == {*stage_settings(mine(text)), "run.mk"}
    stamps = {path: path.stat().st_mtime_ns for path in first}
    time.sleep(0.01)
    assert write_run(mine("# a comment moves every line\n" + text), Path("runs")) == []
    assert {path: path.stat().st_mtime_ns for path in first} == stamps
    again = write_run(mine(text + "iterations: {iter3: {train: {learning_rate: 2e-4}}}\n"), Path("runs"))
    assert again == [Path("runs/mine-selm/iter3/train.yaml")]
    write_run(mine(text + "iterations: {iter3: null}\n"), Path("runs"))
    assert Path("runs/mine-selm/iter3/train.yaml").is_file()
    assert not list(Path("runs").rglob(".*"))


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(mine("seed: 1\n"), Path("runs"))
    before = Path("runs/mine-selm/data/data.yaml").read_text()

    def full(path: Path, text: str, **_: Any) -> None:
        if path.name.endswith(".partial"):
            path.touch()
            raise OSError(28, "No space left on device")

    run = resolve("mine-selm")
    changed = mine("seed: 2\n")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_run(changed, Path("runs"))
    assert run.settings.seed != changed.settings.seed
    assert Path("runs/mine-selm/data/data.yaml").read_text() == before
    assert not list(Path("runs").rglob(".*"))


def test_make_learns_the_shape_of_the_run(folder: Path) -> None:
    batches = "sft: {global_batch_size: 256}\ntrain: {global_batch_size: 64}\n"
    text = make_variables(mine("data: {dataset: some/pairs}\nlaunch: ddp\n" + batches))
    assert text.splitlines() == [
        "# resolved from recipe mine-selm; edit the recipe, not this file",
        "iterations.mine-selm := iter0 iter1 iter2 iter3",
        "start.mine-selm := sft",
        "sampled.mine-selm := iter1 iter2 iter3",
        "judged.mine-selm := iter1 iter2 iter3",
        "reviewed.mine-selm :=",
        "scored.mine-selm := iter0 iter1 iter2 iter3",
        "watched.mine-selm :=",
        "fitted.mine-selm := yes",
        "launch.mine-selm := ddp",
        "files.mine-selm :=",
        "checkpoint.mine-selm :=",
        "judge.mine-selm :=",
        "kl.mine-selm :=",
    ]
    assert "fitted.tiny-selm :=\n" in make_variables(resolve("tiny-selm"))


def test_files_outside_the_run_are_watched(folder: Path, tmp_path: Path) -> None:
    for name in ("start/model.safetensors", "judge/config.json", "own.jinja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    text = f"""
data: {{dataset: some/pairs}}
model: {{name_or_path: {tmp_path}/start, architecture: null, tokenizer_vocab_size: null, chat_template: {tmp_path}/own.jinja}}
iterations: {{iter2: {{rank: {{ranker: reward_model, model: {tmp_path}/judge}}}}}}
"""
    told = make_variables(mine(text)).splitlines()
    assert f"checkpoint.mine-selm := {tmp_path}/start/model.safetensors" in told
    assert f"judge.mine-selm := {tmp_path}/judge/config.json" in told
    (tmp_path / "judge/adapter_config.json").write_text('{"base_model_name_or_path": "../start"}')
    (tmp_path / "judge/notes of mine.md").touch()
    watched = [f"{tmp_path}/judge/adapter_config.json", f"{tmp_path}/judge/config.json"]
    told = make_variables(mine(text)).splitlines()
    assert f"judge.mine-selm := {' '.join([f'{tmp_path}/judge/../start/model.safetensors', *watched])}" in told
    (tmp_path / "judge/a b.json").touch()
    with pytest.raises(UserError, match=r"a b\.json: make cannot watch a file of this name"):
        make_variables(mine(text))
    (tmp_path / "judge/a b.json").unlink()
    before = stage_settings(mine(text))
    (tmp_path / "own.jinja").write_text("2")
    after = stage_settings(mine(text))
    changed = {path for path in after if after[path] != before[path]}
    assert {"sft/sft.yaml", "iter1/generate.yaml", "iter3/train.yaml", "iter0/evaluate.yaml"} <= changed
    assert not changed & {"data/data.yaml", "iter1/select.yaml", "report.yaml"}


SERA = """
data: {portions: 1}
train: {alpha: 0}
select: {rule: sera}
iterations: {iter0: null, iter1: {select: {rule: dataset}}}
"""


def test_a_review_is_scored_before_it_selects_and_names_the_policies_of_its_margins(folder: Path) -> None:
    run = mine(SERA)
    stages = stage_settings(run)
    assert "reviewed.mine-selm := iter2 iter3\n" in make_variables(run)
    assert stages["iter2/score.yaml"]["texts"] == {"iter1": ["offline", "samples"], "sft": ["offline", "samples"]}
    assert list(stages["iter3/score.yaml"]["texts"]) == ["iter2", "iter1", "sft"]
    assert stages["iter3/score.yaml"]["stores"] == ["iter1", "iter2"]
    assert stages["iter3/select.yaml"]["stores"] == ["iter1", "iter2", "iter3"]
    assert [term["policy"] for term in stages["iter3/select.yaml"]["terms"]] == ["iter2", "iter1"]
    assert stages["iter3/select.yaml"]["measure"] == {"reference": True, "length_normalized": False}
    with_limit = mine(SERA + "health: {max_kl: 3}\n")
    assert "watched.mine-selm := iter1 iter2 iter3\n" in make_variables(with_limit)
    assert stage_settings(with_limit)["iter2/health.yaml"]["reads"] == ["pairs.jsonl", "policy", "completions.jsonl", "eval.json"]


@pytest.mark.parametrize(("text", "kinds"), [
    ("select: {rule: sera, bootstrap: 0}", ("", "iter2 iter3", "iter1 iter2 iter3")),
    ("select: {rule: sera, keep: 0}", ("iter2 iter3", "iter2 iter3", "iter1 iter2 iter3")),
    ("select: {rule: sera, keep_by: random, bootstrap: 0}", ("", "", "iter1 iter2 iter3")),
    ("select: {rule: sera}\ntrain: {alpha: 0, loss_type: simpo}", ("iter2 iter3", "iter2 iter3", "iter2 iter3")),
    ("select: {rule: dataset}\ntrain: {alpha: 0, loss_type: orpo}", ("", "", "")),
])  # fmt: skip
def test_stages_that_a_method_does_not_need_are_left_out(folder: Path, text: str, kinds: tuple[str, str, str]) -> None:
    lines = make_variables(
        mine(SERA.replace("select: {rule: sera}", text).replace("train: {alpha: 0}\n", "", int("train" in text)))
    )
    told = dict(line.split(".mine-selm :=") for line in lines.splitlines()[1:])
    assert tuple(told[kind].strip() for kind in ("sampled", "reviewed", "scored")) == kinds


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/resolve_recipe.py in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_writes_silently_and_shows_on_request(folder: Path) -> None:
    done = script("tiny-selm", "--runs", "elsewhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("elsewhere/tiny-selm/iter3/train.yaml").is_file()
    assert script("--list").stdout.split() == ["tiny-dpo", "tiny-selm"]
    mine("train:\n  beta: 0.5\ndata: {dataset: some/pairs}\niterations:\n  iter3:\n    train: {learning_rate: 5e-7}\n")
    shown = script("mine-selm", "--show", "iter3").stdout.splitlines()
    assert shown[0] == "# iter3 of mine-selm starts from iter2 and uses portion 4 of 4"
    assert "train.learning_rate: 5.0e-07   # recipes/mine/selm.yaml:7" in shown
    assert "train.beta: 0.5   # recipes/mine/selm.yaml:3" in shown
    assert "train.weight_decay: 0.0   # default" in shown
    assert any(re.fullmatch(r"rank\.ranker: reward_model   # recipes/tiny/base\.yaml:\d+, resolved", x) for x in shown)
    assert not Path("runs").exists()
    base = script("mine-selm", "--show").stdout.splitlines()
    assert not any("selm.yaml:7" in line for line in base)


def test_the_script_tells_a_mistake_in_one_line(folder: Path) -> None:
    for arguments in (("tiny-slem",), (), ("tiny-selm", "--show", "iter9")):
        done = script(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_the_script_starts_without_heavy_libraries(folder: Path) -> None:
    code = "import sys, handbook_ext.recipes.writing; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
