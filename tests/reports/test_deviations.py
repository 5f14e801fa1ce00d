"""What a run did otherwise than the paper, from made manifests: each kind of deviation with both values and where it is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.reports.deviation_pages import CSV_HEAD, counted, render_deviations
from handbook_ext.reports.deviations import Deviation, deviations, deviations_of, recipe_deviations
from handbook_ext.reports.paper_headings import Judge
from handbook_ext.reports.paper_measurements import read_filling
from handbook_ext.reports.paper_pages import FORMATS, render_paper_table
from handbook_ext.reports.paper_setups import BETAS, COLUMNS, setup_of
from handbook_ext.reports.paper_tables import read_paper_table
from tests.reports.set_files import measure, write_set
from tests.workspace import ROOT

PINS = {"torch": "2.1.2", "transformers": "4.40.2", "trl": "0.8.6", "accelerate": "0.27.2", "datasets": "2.14.6", "peft": "0.7.1"}
PINS |= {"deepspeed": "0.12.2", "vllm": "0.3.3"}
OF_RECIPE = ("the recipe's own note", "lines `# assumed`")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def write_run(folder: Path, run: Run, change: Callable[[str, dict[str, Any]], None] = lambda stage, manifest: None) -> Path:
    """Writes the manifests of a finished run, as the paper had it but for what `change` does to each."""
    for rule in run_rules(run):
        path = manifest_path(folder / rule.artifact)
        manifest = {
            "stage": rule.settings.stage, "sha256": "", "files": {}, "key": "", "inputs": {}, "recipe": run.recipe, 
            "overrides": list(run.overrides), "settings": rule.settings.model_dump(mode="json"),
            "counts": {"in": 63135, "out": 63135, "dropped": {}}, "rows": {"train": 61135, "test": 2000},
            "launch": {"launcher": "accelerate", "processes": run.launch.processes},
            "hardware": {"gpus": ["NVIDIA A100-SXM4-80GB"] * 8}, "packages": dict(PINS), "policy": None,
        }  # fmt: skip
        change(rule.settings.stage, manifest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))
        if not (folder / rule.artifact).is_dir():
            (folder / rule.artifact).touch()
    return folder


def found(folder: Path, recipe: str = "zephyr-selm", judges: dict[str, Judge] | None = None) -> dict[str, Deviation]:
    """The deviations of a run by what they are, without those that the recipe itself tells."""
    paper = resolve(recipe)
    return {each.what: each for each in deviations(folder, paper, setup_of(paper), judges) if each.source not in OF_RECIPE}


def test_a_run_that_is_the_papers_deviates_in_nothing_but_an_unstated_revision(tmp_path: Path) -> None:
    assert set(found(write_run(tmp_path / "run", resolve("zephyr-selm")))) == {"revision of the data set"}
    assert found(tmp_path / "nothing") == {}


@pytest.mark.parametrize(("overrides", "what", "paper", "ours", "source"), [
    ("train.alpha=0.01", "train.alpha", "0.001", "0.01", "SELM: paper, code and model cards"),
    ("train.beta=0.1", "train.beta", "0.01", "0.1", "SELM: code and model cards, not in the paper"),
    ("train.global_batch_size=128", "train.global_batch_size", "256", "128", "SELM: paper and model cards"),
    ("generate.temperature=0.7", "generate.temperature", "0", "0.7", "SELM: code"),
    ("iterations.iter3.train.learning_rate=3e-7", "train.learning_rate", "1e-07", "3e-07", "recipes/zephyr/base.yaml:"),
    ("data.revision=abc", "data.revision", "none", "abc", "recipes/zephyr/base.yaml:"),
    ("model.chat_template=null", "model.chat_template", "zephyr", "none", "recipes/zephyr/base.yaml:"),
    ("train.truncation=always", "train.truncation", "as_needed", "always", "recipes/zephyr/base.yaml:"),
    ("seed=7", "seed", "42", "7", "recipes/zephyr/base.yaml:"),
])  # fmt: skip
def test_a_setting_that_differs_has_the_papers_value_and_its_source(
    tmp_path: Path, overrides: str, what: str, paper: str, ours: str, source: str
) -> None:
    told = found(write_run(tmp_path / "run", resolve("zephyr-selm", overrides=parse_set(overrides))))
    assert (told[what].paper, told[what].ours) == (paper, ours)
    assert told[what].source.startswith(source)
    assert (told["SET and DATA"].paper, told["SET and DATA"].ours) == (
        "none",
        resolve("zephyr-selm", overrides=parse_set(overrides)).overrides[0],
    )
    assert set(told) == {what, "SET and DATA", "revision of the data set"}


def test_what_only_decides_the_speed_is_no_deviation(tmp_path: Path) -> None:
    fast = "generate.batch_size=1 train.save_steps=3 train.per_device_train_batch_size=4 rank.batch_size=2 train.logging_steps=1"
    told = found(write_run(tmp_path / "run", resolve("zephyr-selm", overrides=parse_set(fast))))
    assert set(told) == {"SET and DATA", "revision of the data set"}


def test_processes_gpus_versions_and_rows_that_differ(tmp_path: Path) -> None:
    def change(stage: str, manifest: dict[str, Any]) -> None:
        manifest["launch"]["processes"] = 4
        manifest["hardware"] = {"gpus": ["NVIDIA H100"] * 4}
        manifest["packages"] |= {"torch": "2.13.0+cu130", "vllm": "0.32.0"}
        manifest["rows"] = {"train": 61000, "test": 2000}
        manifest["counts"]["dropped"] = {"ties": 135}

    told = found(write_run(tmp_path / "run", resolve("zephyr-selm"), change))
    assert {name: (each.paper, each.ours) for name, each in told.items() if name != "revision of the data set"} == {
        "processes of training": ("8", "4"), "GPUs of training": ("8x A100", "4x NVIDIA H100"),
        "version of torch": ("2.1.2", "2.13.0+cu130"), "version of vllm": ("0.3.3", "0.32.0"),
        "rows, train": ("61135", "61000 (135 of 63135 rows read were dropped)"),
    }  # fmt: skip
    # Trained in four iterations alike, which is told once.
    assert told["GPUs of training"].where == "iter0/policy, iter1/policy and 2 more"


def test_a_judge_and_a_part_of_a_set_that_are_not_the_papers(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", resolve("zephyr-selm"))
    judges = read_paper_table("selm1").heading.judges
    write_set(folder / "iter3", {"lc_win_rate": measure(3.0)})
    assert set(found(folder, judges=judges)) == {"revision of the data set"}
    write_set(folder / "iter3", {"lc_win_rate": measure(3.0, judge={"model": "local", "kind": "x"})}, prompts=50)
    told = found(folder, judges=judges)
    assert (told["judge of alpaca"].paper, told["judge of alpaca"].ours) == ("GPT-4 Turbo (assumed)", "local")
    assert (told["prompts of alpaca"].paper, told["prompts of alpaca"].ours) == ("805", "50")


def test_what_the_recipe_itself_does_otherwise_is_told_of_its_own_runs() -> None:
    told = {each.what: each for each in recipe_deviations(resolve("zephyr-selm"))}
    assert told["train.max_grad_norm"].paper.startswith("the default of transformers, which SELM code's launch loses")
    assert told["train.truncation"].paper == "the explored sample counts as well"
    assert told["train.save_steps"].ours == "20"
    assert int(told["settings that no source states"].ours.removesuffix(" assumed")) > 5
    assert recipe_deviations(resolve("tiny-selm")) == []


def test_a_tiny_run_differs_in_most(tmp_path: Path) -> None:
    """Beside the recipe at paper scale that it stands for; what that one assumes is not said of it."""
    run = resolve("tiny-selm")
    write_run(tmp_path / "tiny-selm", run, lambda stage, manifest: manifest["hardware"].pop("gpus"))
    write_run(tmp_path / "tiny-selm-seed2", replace(resolve("tiny-selm-seed2"), name="x"))
    table = read_paper_table("selm1")
    told = deviations_of(table, read_filling(table, tmp_path, model="tiny"), tmp_path)
    assert list(told) == ["tiny-selm", "tiny-selm-seed2"]
    by_name = {each.what: each for each in told["tiny-selm"]}
    assert {
        "model.name_or_path", "model.architecture", "data.dataset", "train.alpha", "train.beta", "train.learning_rate",
        "train.global_batch_size", "rank.ranker", "generate.temperature", "processes of training", "GPUs of training",
        "stage sft", "seed",
    } <= set(by_name)  # fmt: skip
    assert (by_name["seed"].paper, by_name["seed"].ours) == ("42", "1")
    assert not {each.source for each in told["tiny-selm"]} & set(OF_RECIPE)
    # Nothing of tiny-dpo was run, and the papers' own runs are not asked about.
    assert deviations_of(table, read_filling(table, tmp_path), tmp_path) == {}


def test_sera_states_no_versions_and_no_machine_but_for_tinyllama(tmp_path: Path) -> None:
    told = found(write_run(tmp_path / "run", resolve("pythia-sera")), "pythia-sera")
    assert (told["versions of libraries"].paper, "GPUs of training" in told) == ("not stated", False)
    assert "torch 2.1.2" in told["versions of libraries"].ours
    assert (
        found(write_run(tmp_path / "one", resolve("tinyllama-sera")), "tinyllama-sera")["GPUs of training"].paper
        == "4x A100-40GB"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_deviations_end_a_page_in_its_format(tmp_path: Path, form: str) -> None:
    told = {"a_run": [Deviation("train.beta", "0.01", "0.2 | <b> & 5 %", "iter1/policy", "SELM: code")]}
    part = render_deviations(told, form)
    page = render_paper_table(read_paper_table("sera6"), form, appendix=part)
    assert part in page
    if form == "csv":
        lines = list(csv.DictReader(io.StringIO(page.partition("\n\n")[2])))
        assert list(lines[0]) == CSV_HEAD
        assert (lines[0]["run"], lines[0]["ours"]) == ("a_run", "0.2 | <b> & 5 %")
    assert {"html": "0.2 | &lt;b&gt; &amp; 5 %", "latex": r"0.2 \textbar{} \textless{}b\textgreater{} \& 5 \%"}.get(
        form, "0.2 "
    ) in page
    assert form != "html" or page.rstrip().endswith("</html>")


def test_deviations_are_counted_with_the_command_that_lists_them() -> None:
    told = {"a": [Deviation("x", "1", "2", "w")] * 3, "b": [Deviation("x", "1", "2", "w")]}
    assert counted(told, "python x --deviations") == [
        "Deviations from the paper's setup: a 3, b 1. python x --deviations lists them."
    ]
    assert counted({}, "x") == []


@pytest.mark.parametrize("model", COLUMNS)
def test_a_delivered_recipe_has_what_the_papers_settings_print(model: str) -> None:
    """Each number of tables selm-settings and sera4 that is a setting is the recipe's; betas by loss."""
    selm = COLUMNS[model][0] == "selm-settings"
    checked = 0
    for method in ["selm"] if selm else ["sera", "sera-ipo", "sera-slic"] if model != "mistral" else ["sera"]:
        run = resolve(f"{model}-{method}")
        setup = setup_of(run)
        settings = run.iterations[-1].settings.model_dump()
        for name in setup.rows_of:
            stated = setup.stated(name)
            if stated is not None and name != "train.learning_rate":
                section, key = name.split(".")
                assert settings[section][key] == pytest.approx(stated), (model, method, name)
                checked += 1
        if not selm:
            assert settings["train"]["loss_type"] in BETAS
            assert settings["train"]["learning_rate"] == setup.stated("train.learning_rate")
    assert checked >= (8 if selm else 9)
