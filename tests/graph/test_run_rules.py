"""The graph of a run: what determines each stage, what it reads, and the plain text that make gets of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.core.stage import Stage
from handbook_ext.graph.makefile import run_text, settings_text, stamp_text, write_run
from handbook_ext.graph.rule import whole_of
from handbook_ext.graph.run_rules import StageRule, checked, run_rules
from handbook_ext.graph.stages import ScoreCandidatesStage
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import Run, resolve
from tests.recipe_folder import ROOT, enter_folder, mine

SCRIPT = ROOT / "scripts" / "resolve_recipe.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def rules_of(run: Run) -> dict[str, StageRule]:
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


def test_a_package_makes_the_checkpoint_an_artifact_that_every_reader_of_the_start_waits_for(folder: Path) -> None:
    package = (
        "data: {dataset: some/pairs}\nmodel: {name_or_path: some/model, package: some-model==1.0, chat_template: own.jinja}\n"
    )
    (folder / "own.jinja").write_text("{{ messages }}")
    rules = rules_of(mine(package + "sft: null\n", "no-sft"))
    checkpoint = rules["start/checkpoint.yaml"]
    assert (checkpoint.artifact, checkpoint.script, checkpoint.inputs) == ("start/policy", "fetch_checkpoint.py", [])
    assert [path.name for path in checkpoint.external] == ["own.jinja"]
    for path in ("ranker/ranker.yaml", "start/evaluate.yaml", "iter0/score.yaml", "iter0/train.yaml", "iter1/evaluate.yaml"):
        assert "start/policy" in rules[path].inputs, path
        assert not rules[path].external, path
    assert rules_of(mine(package, "with-sft"))["sft/sft.yaml"].inputs == ["data/rows/sft.jsonl", "start/policy"]
    assert "start/checkpoint.yaml" not in rules_of(mine("seed: 1\n"))
    # What a run does with the checkpoint is no reason to fetch it again.
    other = rules_of(mine(package + "sft: null\nseed: 9\n", "other"))["start/checkpoint.yaml"].settings
    assert other.model_copy(update={"recipe": checkpoint.settings.recipe}) == checkpoint.settings


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
    assert [values[f"iter{n}/select.yaml"]["portion"] for n in range(4)] == [
        {"index": n, "of": 4, "most": None} for n in range(4)
    ]
    assert [values[f"iter{number}/score.yaml"]["explore"] for number in (0, 1)] == [False, True]
    assert [values[f"iter{number}/train.yaml"]["policy"] for number in range(4)] == ["sft", "iter0", "iter1", "iter2"]
    assert values["report.yaml"]["policies"] == ["sft", "iter0", "iter1", "iter2", "iter3"]
    assert values["iter2/evaluate.yaml"]["initial_policy"] == "sft"
    assert values["sft/evaluate.yaml"]["initial_policy"] is None


def test_the_title_of_a_report_names_what_changes_the_recipe(folder: Path) -> None:
    mine("report: {title: Mine}\nvariants: {noisy: {data: {flip_rate: 0.4}}, short: {generate: {max_new_tokens: 8}}}\n")
    run = resolve("mine-selm-noisy-short-seed3", overrides=parse_set("train.beta=0.5"))
    assert run.variants == ("noisy", "short")
    assert rules_of(run)["report.yaml"].settings.title == "Mine (noisy, short, train.beta=0.5)"
    assert rules_of(resolve("mine-selm-seed3"))["report.yaml"].settings.title == "Mine"


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
    assert changed_stages(base, late) == {"iter3/train.yaml", "check.yaml"}
    sampling = mine("iterations: {iter2: {generate: {temperature: 1.23}}}\n")
    assert changed_stages(base, sampling) == {"iter2/generate.yaml"}
    assert changed_stages(base, mine("report: {title: x}\n")) == {"report.yaml"}
    assert changed_stages(base, mine("launch: gpu\n")) == set()
    batch = mine("iterations: {iter1: {train: {global_batch_size: 4096}}}\n")
    assert changed_stages(base, batch) == {"iter1/train.yaml", "iter1/score.yaml", "check.yaml"}
    assert changed_stages(base, mine("data: {max_truncated: 0.1}\n")) == {"check.yaml"}
    assert "check.yaml" not in changed_stages(base, mine("train: {beta: 0.7}\n"))
    assert "iter0/train.yaml" in changed_stages(base, mine("train: {num_train_epochs: 7}\n"))
    assert changed_stages(base, mine("train: {weight_decay: 0}\nscore: {}\n")) == set()


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
        "    runs/mine-selm/ranker/model/manifest.json \\\n"
        "    | runs/mine-selm/check.json \\\n"
        "    runs/mine-selm/check.manifest.json\n"
        "\t$(PYTHON) -m handbook_ext.core.per_device --processes 8 scripts/rank_completions.py runs/mine-selm/iter1\n"
    ) in text
    assert "\t$(ACCELERATE) --config_file recipes/accelerate/ddp.yaml scripts/train_policy.py runs/mine-selm/iter1\n" in text
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


def test_a_part_of_the_rows_stands_for_all_of_them(folder: Path) -> None:
    rules = run_rules(resolve("tiny-selm"))
    parts = {name for rule in rules for name in rule.inputs if name.startswith("data/rows")}
    assert {whole_of(part) for part in parts} == {"data/rows"}
    for whole in ("data/rows", "iter1/pairs.jsonl", "iter1/policy", "data/rows/other.jsonl", "data/other/sft.jsonl"):
        assert whole_of(whole) == whole


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
    assert [path.name for path in rules["sft/sft.yaml"].external] == ["model.safetensors", "own.jinja"]
    assert not rules["iter1/generate.yaml"].external  # The policy that SFT leaves was saved with the template.
    watched = {path.name for path in rules["iter2/rank.yaml"].external}
    assert watched == {"adapter_config.json", "config.json", "a b$c.json", "model.safetensors"}
    assert not rules["iter1/rank.yaml"].external
    write_run(mine(text), Path("runs"))
    made = Path("runs/mine-selm/run.mk").read_text()
    assert "runs/mine-selm/iter2/rank.files" in made
    assert "b$c" not in made
    before, stamps = values_of(mine(text)), {name: stamp_text(rule.external) for name, rule in rules.items()}
    os.utime(tmp_path / "own.jinja", ns=(1, 1))
    os.utime(tmp_path / "judge/config.json", ns=(1, 1))
    changed = {name for name, rule in rules.items() if stamp_text(rule.external) != stamps[name]}
    assert changed == {"check.yaml", "sft/sft.yaml", "iter2/rank.yaml"}
    assert "model.safetensors" not in {path.name for path in rules["check.yaml"].external}
    assert values_of(mine(text)) == before  # The contents are compared by the stages, when they read them.
    started = rules_of(mine(text + "sft: null\n"))
    assert "own.jinja" in {path.name for path in started["iter0/train.yaml"].external}


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


def test_own_pairs_that_a_ranker_labels_are_made_of_samples_scores_and_verdicts(folder: Path) -> None:
    """A ranking holds the samples' texts, but margins choose among the samples themselves."""
    rules = rules_of(mine(SERA.replace("select: {rule: sera}", "select: {rule: sera, bootstrap_labels: ranker}")))
    assert rules["iter2/select.yaml"].inputs == [
        "data/rows/train.jsonl", "iter2/rankings.jsonl", "iter2/completions.jsonl", "iter1/logprobs", "iter2/logprobs",
    ]  # fmt: skip
    assert rules["iter1/select.yaml"].inputs == ["data/rows/train.jsonl"]
    judged = rules_of(mine("select: {rule: best_and_worst}\n"))["iter1/select.yaml"]
    assert judged.inputs == ["data/rows/train.jsonl", "iter1/rankings.jsonl"]


def test_limits_of_health_hold_back_the_next_iteration_and_the_report(folder: Path) -> None:
    rules = rules_of(mine(SERA + "health: {max_kl: 3}\n"))
    assert rules["iter2/health.yaml"].inputs == [
        "iter2/pairs.jsonl",
        "iter2/policy",
        "iter2/eval.json",
        "iter2/completions.jsonl",
    ]
    for stage in ("generate", "score", "train"):
        assert rules[f"iter3/{stage}.yaml"].after == ("check.json", "iter2/health.json")
    assert rules["report.yaml"].after == ("iter3/health.json",)
    single = mine(
        "health: {max_length_gap: 9}\niterations: {iter0: {}, iter1: null, iter2: null, iter3: null}\ndata: {portions: 1}\n"
    )
    assert rules_of(single)["report.yaml"].after == ("iter0/health.json",)


def test_the_check_comes_before_every_stage_that_loads_a_policy_and_is_the_input_of_none(folder: Path) -> None:
    for text in ("", SERA, "data: {dataset: some/pairs}\nrank: {ranker: self}\nlaunch: gpu\n"):
        rules = run_rules(mine(text))
        assert [rule.artifact for rule in rules[:2]] == ["data/rows", "check.json"]
        assert {rule.after for rule in rules if rule.on_device} == {("check.json",)}
        assert not any(rule.after for rule in rules if not rule.on_device)
        assert not any("check.json" in rule.inputs for rule in rules)


@pytest.mark.parametrize(("text", "stages"), [
    ("select: {rule: sera, bootstrap: 0}", "score select train"),
    ("select: {rule: sera, keep: 0}", "generate score select train"),
    ("select: {rule: sera, keep_by: random, bootstrap: 0}", "select score train"),
    ("select: {rule: sera, bootstrap_labels: coin}", "generate score select train"),
    ("select: {rule: sera, bootstrap_labels: ranker}", "generate rank score select train"),
    ("select: {rule: sera}\ntrain: {alpha: 0, loss_type: simpo}", "generate score select train"),
    ("select: {rule: dataset}\ntrain: {alpha: 0, loss_type: orpo}", "select train"),
    ("select: {rule: gold_over_sample}", "generate select score train"),
])  # fmt: skip
def test_stages_that_a_method_does_not_need_are_left_out(folder: Path, text: str, stages: str) -> None:
    recipe = SERA.replace("select: {rule: sera}", text).replace("train: {alpha: 0}\n", "", int("train" in text))
    found = [rule.settings.stage for rule in run_rules(mine(recipe)) if rule.folder == "iter2"]
    assert found == [*stages.split(), "evaluate"]
