"""The graph of a run: what determines each stage, what it reads, and the plain text that make gets of it."""

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
from handbook_ext.core.stage import Stage
from handbook_ext.graph.makefile import run_text, settings_text, stamp_text, write_run
from handbook_ext.graph.run_rules import Rule, checked, run_rules
from handbook_ext.graph.stages import ScoreCandidatesStage, TrainStage
from handbook_ext.recipes.run import Run, resolve
from tests.recipe_folder import ROOT, enter_folder, mine

SCRIPT = ROOT / "scripts" / "resolve_recipe.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def rules_of(run: Run) -> dict[str, Rule]:
    """The rules by settings file."""
    return {rule.settings_file: rule for rule in run_rules(run)}


def values_of(run: Run) -> dict[str, dict[str, Any]]:
    """What each settings file says."""
    return {path: yaml.safe_load(settings_text(rule)) for path, rule in rules_of(run).items()}


def test_each_stage_reads_what_the_loop_says(folder: Path) -> None:
    rules = rules_of(mine("data: {dataset: some/pairs}\n"))
    inputs = {path: rule.inputs for path, rule in rules.items()}
    assert inputs["data/data.yaml"] == []
    assert inputs["sft/sft.yaml"] == ["data/rows/sft.jsonl"]
    assert inputs["ranker/ranker.yaml"] == ["data/rows/train.jsonl", "sft/policy"]
    assert inputs["sft/evaluate.yaml"] == ["data/rows/test.jsonl", "sft/policy", "ranker/model"]
    assert inputs["iter0/select.yaml"] == ["data/rows/train.jsonl"]
    assert inputs["iter0/score.yaml"] == ["iter0/pairs.jsonl", "sft/policy"]
    assert inputs["iter0/train.yaml"] == ["iter0/pairs.jsonl", "iter0/logprobs", "sft/policy"]
    assert inputs["iter1/generate.yaml"] == ["data/rows/train.jsonl", "iter0/policy"]
    assert inputs["iter1/rank.yaml"] == ["iter1/completions.jsonl", "data/rows/train.jsonl", "ranker/model"]
    assert inputs["iter1/select.yaml"] == ["data/rows/train.jsonl", "iter1/rankings.jsonl"]
    assert inputs["iter3/evaluate.yaml"] == ["data/rows/test.jsonl", "iter3/policy", "ranker/model", "sft/policy"]
    assert not {"iter0/generate.yaml", "iter0/rank.yaml"} & set(rules)
    assert {"iter3/eval.json", "sft/eval.json", "iter3/policy"} <= set(inputs["report.yaml"])


def test_a_stage_opens_with_the_inputs_that_make_waits_for(folder: Path) -> None:
    run = mine(SERA)
    write_run(run, Path("runs"))
    text = Path("runs/mine-selm/run.mk").read_text()
    for rule in run_rules(run):
        stage = Stage.open(Path("runs/mine-selm") / rule.folder, type(rule.settings))
        assert str(stage.artifact) == f"runs/mine-selm/{rule.artifact}"
        named = f"runs/mine-selm/{rule.settings_file}"
        [block] = [each for each in text.split("\n\n") if named in each.replace("\\", "").split()]
        for path in stage.inputs():
            waited = path.parent if path.parent.name == "rows" else path
            assert str(waited) in block, (rule.artifact, path)
        assert f"scripts/{rule.script} runs/mine-selm" in block


def test_portions_and_exploration_follow_the_iteration(folder: Path) -> None:
    values = values_of(mine("data: {dataset: some/pairs}\n"))
    assert [values[f"iter{n}/select.yaml"]["portion"] for n in range(4)] == [{"index": n, "of": 4} for n in range(4)]
    assert [values[f"iter{number}/score.yaml"]["explore"] for number in (0, 1)] == [False, True]
    assert [values[f"iter{number}/train.yaml"]["policy"] for number in range(4)] == ["sft", "iter0", "iter1", "iter2"]
    assert values["report.yaml"]["policies"] == ["sft", "iter0", "iter1", "iter2", "iter3"]
    assert values["iter2/evaluate.yaml"]["initial_policy"] == "sft"
    assert values["sft/evaluate.yaml"]["initial_policy"] is None


def test_more_than_twenty_iterations(folder: Path) -> None:
    names = ", ".join(f"iter{number}: {{}}" for number in range(4, 31))
    rules = rules_of(mine(f"data: {{portions: 1}}\niterations: {{{names}}}\n"))
    assert rules["iter30/train.yaml"].inputs == ["iter30/pairs.jsonl", "iter30/logprobs", "iter29/policy"]


def changed_stages(before: Run, after: Run) -> set[str]:
    """The settings files in which two runs of one name differ."""
    first, second = values_of(before), values_of(after)
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
    for rule in run_rules(run):
        text = (Path("runs/tiny-selm") / rule.settings_file).read_text()
        assert text.splitlines()[0] == "# Resolved from recipe tiny-selm; edit the recipe, not this file."
        assert ".yaml:" not in text
        assert Stage.open(Path("runs/tiny-selm") / rule.folder, type(rule.settings)).settings == rule.settings
    with pytest.raises(UserError, match="settings of this stage are missing; run make"):
        Stage.open(Path("runs/tiny-selm/iter9"), TrainStage)
    Path("runs/tiny-selm/iter1/train.yaml").write_text("[")
    with pytest.raises(UserError, match="is damaged; run make, which writes it anew"):
        Stage.open(Path("runs/tiny-selm/iter1"), TrainStage)


@pytest.mark.parametrize("title", ["1e5", "2024-01-01", "0x10", "1_000", "no", "12:30", "=", "~", " a\nb: c", "ä"])
def test_text_that_looks_like_something_else_arrives_as_text(folder: Path, title: str) -> None:
    run = mine(f"report: {{title: {title!r}}}\n".replace("\\n", " ")) if "\n" not in title else resolve("tiny-selm")
    write_run(run, Path("runs"))
    from handbook_ext.graph.stages import ReportStage

    assert Stage.open(Path("runs") / run.name, ReportStage).settings.report.title == run.settings.report.title


def test_settings_are_rewritten_only_when_they_change(folder: Path) -> None:
    text = "train: {learning_rate: 1e-4}\n"
    first = write_run(mine(text), Path("runs"))
    assert {str(path.relative_to("runs/mine-selm")) for path in first} == {*rules_of(mine(text)), "run.mk"}
    stamps = {path: path.stat().st_mtime_ns for path in first}
    time.sleep(0.01)
    assert write_run(mine("# a comment moves every line\n" + text), Path("runs")) == []
    assert {path: path.stat().st_mtime_ns for path in first} == stamps
    again = write_run(mine(text + "iterations: {iter3: {train: {learning_rate: 2e-4}}}\n"), Path("runs"))
    assert again == [Path("runs/mine-selm/iter3/train.yaml")]
    Path("runs/mine-selm/iter1/train.yaml").write_text("cut of")
    Path("runs/mine-selm/run.mk").write_bytes(b"\xff")
    write_run(mine(text + "iterations: {iter3: {train: {learning_rate: 2e-4}}}\n"), Path("runs"))
    assert Stage.open(Path("runs/mine-selm/iter1"), TrainStage).settings.train.learning_rate == 1e-4
    assert not list(Path("runs").rglob(".*.partial"))


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(mine("seed: 1\n"), Path("runs"))
    before = Path("runs/mine-selm/data/data.yaml").read_text()

    def full(path: Path, text: str, **_: Any) -> None:
        if path.name.endswith(".partial"):
            path.touch()
            raise OSError(28, "No space left on device")

    changed = mine("seed: 2\n")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_run(changed, Path("runs"))
    assert Path("runs/mine-selm/data/data.yaml").read_text() == before
    assert not list(Path("runs").rglob(".*"))


def test_run_mk_is_a_table_of_contents(folder: Path) -> None:
    run = mine("data: {dataset: some/pairs}\nlaunch: ddp\nsft: {global_batch_size: 256}\ntrain: {global_batch_size: 64}\n")
    text = run_text(run, run_rules(run), Path("runs"))
    assert (
        "# iter1 starts from iter0; part 2 of 4 of the prompts; rule best_and_worst: generate, rank, select, score, train" in text
    )
    assert (
        "runs/mine-selm/iter1/rankings.jsonl runs/mine-selm/iter1/rankings.manifest.json &: \\\n"
        "    runs/mine-selm/iter1/rank.yaml \\\n"
        "    runs/mine-selm/iter1/completions.jsonl \\\n"
        "    runs/mine-selm/iter1/completions.manifest.json \\\n"
        "    runs/mine-selm/data/rows/manifest.json \\\n"
        "    runs/mine-selm/ranker/model/manifest.json\n"
        "\t$(ACCELERATE) --config_file recipes/accelerate/ddp.yaml scripts/rank_completions.py runs/mine-selm/iter1\n"
    ) in text
    assert "\t$(PYTHON) scripts/select_pairs.py runs/mine-selm/iter1\n" in text
    assert set(re.findall(r"\$\(\w+\)", text)) == {"$(ACCELERATE)", "$(PYTHON)"}


def test_a_graph_that_reads_what_no_stage_makes_is_an_error(folder: Path) -> None:
    rules = run_rules(resolve("tiny-selm"))
    for left_out in rules[:-1]:
        needed = any(left_out.artifact in (name, os.path.dirname(name)) for rule in rules for name in rule.inputs)
        rest = [rule for rule in rules if rule is not left_out]
        if needed:
            with pytest.raises(UserError, match=f"needs {left_out.artifact}.*, which no stage before makes"):
                checked(rest)
    with pytest.raises(UserError, match="two stages make data/rows"):
        checked([rules[0], rules[0]])
    with pytest.raises(UserError, match="which no stage before makes"):
        checked(rules[::-1])


def test_files_outside_the_run_are_watched_by_a_stamp(folder: Path, tmp_path: Path) -> None:
    for name in ("start/model.safetensors", "judge/config.json", "own.jinja", "judge/a b$c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    text = f"""
data: {{dataset: some/pairs}}
model: {{name_or_path: {tmp_path}/start, architecture: null, tokenizer_vocab_size: null, chat_template: {tmp_path}/own.jinja}}
iterations: {{iter2: {{rank: {{ranker: reward_model, model: {tmp_path}/judge}}}}}}
"""
    (tmp_path / "judge/adapter_config.json").write_text('{"base_model_name_or_path": "../start"}')
    (tmp_path / "judge/notes of mine.md").touch()
    rules = rules_of(mine(text))
    assert [path.name for path in rules["sft/sft.yaml"].external] == ["model.safetensors"]
    watched = {path.name for path in rules["iter2/rank.yaml"].external}
    assert watched == {"adapter_config.json", "config.json", "a b$c.json", "model.safetensors"}
    assert not rules["iter1/rank.yaml"].external
    write_run(mine(text), Path("runs"))
    made = Path("runs/mine-selm/run.mk").read_text()
    assert "runs/mine-selm/iter2/rank.files" in made
    assert "b$c" not in made
    before, stamp = values_of(mine(text)), stamp_text(rules["iter2/rank.yaml"].external)
    (tmp_path / "own.jinja").write_text("2")
    os.utime(tmp_path / "judge/config.json", ns=(1, 1))
    assert stamp_text(rules["iter2/rank.yaml"].external) != stamp
    after = values_of(mine(text))
    changed = {path for path in after if after[path] != before[path]}
    assert {"sft/sft.yaml", "iter1/generate.yaml", "iter3/train.yaml", "iter0/evaluate.yaml"} <= changed
    assert not changed & {"data/data.yaml", "iter1/select.yaml", "report.yaml"}


SERA = """
data: {portions: 1}
train: {alpha: 0}
select: {rule: sera}
iterations: {iter0: null, iter1: {select: {rule: dataset}}}
"""


def test_sera_scores_before_it_selects_and_names_the_policies_of_its_margins(folder: Path) -> None:
    rules, values = rules_of(mine(SERA)), values_of(mine(SERA))
    order = list(rules)
    assert order.index("iter2/score.yaml") < order.index("iter2/select.yaml")
    assert isinstance(rules["iter2/score.yaml"].settings, ScoreCandidatesStage)
    assert values["iter2/score.yaml"]["texts"] == {"iter1": ["offline", "samples"], "sft": ["offline", "samples"]}
    assert list(values["iter3/score.yaml"]["texts"]) == ["iter2", "iter1", "sft"]
    assert rules["iter3/score.yaml"].inputs[-2:] == ["iter1/logprobs", "iter2/logprobs"]
    assert rules["iter3/select.yaml"].inputs[-3:] == ["iter1/logprobs", "iter2/logprobs", "iter3/logprobs"]
    assert [term["policy"] for term in values["iter3/select.yaml"]["terms"]] == ["iter2", "iter1"]
    assert values["iter3/select.yaml"]["reward_form"] == {"reference": True, "length_normalized": False}


def test_limits_of_health_hold_back_the_next_iteration(folder: Path) -> None:
    rules = rules_of(mine(SERA + "health: {max_kl: 3}\n"))
    assert rules["iter2/health.yaml"].inputs == [
        "iter2/pairs.jsonl",
        "iter2/policy",
        "iter2/eval.json",
        "iter2/completions.jsonl",
    ]
    for stage in ("generate", "score", "train"):
        assert rules[f"iter3/{stage}.yaml"].after == ("iter2/health.json",)
    assert not any(rule.after for rule in rules_of(mine(SERA)).values())


@pytest.mark.parametrize(("text", "stages"), [
    ("select: {rule: sera, bootstrap: 0}", "score select train"),
    ("select: {rule: sera, keep: 0}", "generate score select train"),
    ("select: {rule: sera, keep_by: random, bootstrap: 0}", "select score train"),
    ("select: {rule: sera}\ntrain: {alpha: 0, loss_type: simpo}", "generate score select train"),
    ("select: {rule: dataset}\ntrain: {alpha: 0, loss_type: orpo}", "select train"),
    ("select: {rule: gold_over_sample}", "generate select score train"),
])  # fmt: skip
def test_stages_that_a_method_does_not_need_are_left_out(folder: Path, text: str, stages: str) -> None:
    recipe = SERA.replace("select: {rule: sera}", text).replace("train: {alpha: 0}\n", "", int("train" in text))
    found = [rule.settings.stage for rule in run_rules(mine(recipe)) if rule.folder == "iter2"]
    assert found == [*stages.split(), "evaluate"]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/resolve_recipe.py in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_script_writes_silently_and_shows_on_request(folder: Path) -> None:
    done = script("tiny-selm", "--runs", "elsewhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Path("elsewhere/tiny-selm/iter3/train.yaml").is_file()
    listed = script("--list").stdout
    assert "tiny-dpo" in listed
    assert "tiny-selm" in listed
    mine("train:\n  beta: 0.5\ndata: {dataset: some/pairs}\niterations:\n  iter3:\n    train: {learning_rate: 5e-7}\n")
    shown = script("mine-selm", "--show", "iter3").stdout.splitlines()
    assert shown[0] == "# iter3 of mine-selm starts from iter2 and uses portion 4 of 4"
    assert "train.learning_rate: 5.0e-07   # recipes/mine/selm.yaml:7" in shown
    assert "train.beta: 0.5   # recipes/mine/selm.yaml:3" in shown
    assert "train.weight_decay: 0.0   # default" in shown
    assert any(re.fullmatch(r"rank\.ranker: reward_model   # recipes/tiny/base\.yaml:\d+, resolved", x) for x in shown)
    assert not Path("runs").exists()
    tried = script("mine-selm", "--show", "--set", "train.beta=0.7").stdout.splitlines()
    assert "train.beta: 0.7   # --set train.beta" in tried


def test_the_script_tells_a_mistake_in_one_line(folder: Path) -> None:
    for arguments in (("tiny-slem",), (), ("tiny-selm", "--show", "iter9"), ("tiny-selm", "--set", "train.bta=1")):
        done = script(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_planning_starts_without_heavy_libraries(folder: Path) -> None:
    code = "import sys, handbook_ext.graph.goals; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
