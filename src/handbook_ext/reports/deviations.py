"""What a run did otherwise than the paper: its manifests beside the paper's recipe as it is delivered, and the papers' settings.

The recipe at paper scale is the paper's setup: each of its values has a source, or is marked as assumed or as a deviation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import finished_manifest
from handbook_ext.core.stage_settings import differences
from handbook_ext.evaluation.set_evaluation import read_set_evaluation, set_evaluations
from handbook_ext.graph.rule import ROWS
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.names import RECIPES
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.tree import shown
from handbook_ext.reports.measurements import Filling
from handbook_ext.reports.paper_headings import Judge
from handbook_ext.reports.paper_measurements import seed_folders
from handbook_ext.reports.paper_setups import NOT_STATED, Setup, setup_of
from handbook_ext.reports.paper_tables import PaperTable

NONE = "none"
# What a settings file has that is no setting of an experiment, and what only decides how fast or how often something happens.
# The latter half repeats settings of the recipe, which other stages have as they are written there.
_NO_SETTING = {
    "inputs", "recipe", "overrides", "stage", "iteration", "policy", "format", "needs", "set", "checkpoint",
    "sizes", "tolerance", "initial_policy", "limits", "engine", "global_batch_size", "explore", "terms", "texts", "reward_form",
}  # fmt: skip
_SPEED = {
    "batch_size", "tokens_per_batch", "gpu_memory_utilization", "tensor_parallel_size", "save_steps", "logging_steps",
    "report_to", "head_chunk", "micro_batch_tokens", "per_device_train_batch_size", "gradient_checkpointing", "torch_compile",
    "liger", "concurrency", "requests_per_minute", "timeout", "max_retries", "input_price", "output_price", "package",
}  # fmt: skip
_LONGEST = 60  # Characters of a value that are shown.


@dataclass(frozen=True)
class Deviation:
    """What differs: the paper's value and ours, where in the run, and where the paper's value stands."""

    what: str
    paper: str
    ours: str
    where: str
    source: str = ""


def deviations(folder: Path, paper: Run, setup: Setup, judges: Mapping[str, Judge] | None = None) -> list[Deviation]:
    """Returns what the run in a folder did otherwise than the paper's recipe, none where nothing of it was run.

    Settings of each finished stage, SET and DATA, seed, processes and GPUs, versions of libraries, rows of data, judges and the
    share of prompts that was judged; and what the recipe at paper scale itself says that it does otherwise, where that was run.
    """
    manifests = {artifact: each for artifact in _artifacts(folder) if (each := finished_manifest(folder / artifact)) is not None}
    if not manifests:
        return []
    found = [*_settings(manifests, paper, setup), *_launches(manifests, paper, setup), *_versions(manifests, setup)]
    found += [*_rows(manifests, paper, setup), *_judged(folder, judges or {})]
    own = any(manifest.get("recipe", "").split("+")[0] == paper.recipe for manifest in manifests.values())
    return _joined([*found, *(recipe_deviations(paper) if own else [])])


def deviations_of(table: PaperTable, filling: Filling, runs: Path, root: Path = RECIPES) -> dict[str, list[Deviation]]:
    """Returns the deviations of each run that stands for cells of a table and of which something was run, by its name."""
    papers = {
        stand.recipe: of_paper.recipe for key, stand in filling.stands.items() if (of_paper := table.stand(*key)) is not None
    }
    found: dict[str, list[Deviation]] = {}
    for recipe, theirs in papers.items():
        paper = resolve(theirs, root)
        by_folder = {
            folder.name: deviations(folder, paper, setup_of(paper), table.heading.judges) for folder in seed_folders(runs, recipe)
        }
        found |= {name: each for name, each in by_folder.items() if each}
    return found


def recipe_deviations(run: Run) -> list[Deviation]:
    """Returns what a recipe's own lines mark as a deviation from the paper, and how many of its values no source states."""
    found, assumed = [], set()
    for tree in (run.tree, *(each.tree for each in run.iterations)):
        for key, mark in tree.marks.items():
            comment = _comment(mark.file, mark.line)
            words = re.search(r"deviation: (.+)", comment)
            if key and words is not None:
                value: Any = tree.values
                for name in key:
                    value = value[name]
                found.append(Deviation(".".join(map(str, key)), words[1], _text(value), str(mark), "the recipe's own note"))
            elif key and comment.startswith("assumed"):
                assumed.add((shown(mark.file), mark.line))
    if assumed:
        files = ", ".join(sorted({file for file, _ in assumed}))
        found.append(
            Deviation("settings that no source states", NOT_STATED, f"{len(assumed)} assumed", files, "lines `# assumed`")
        )
    return found


def _artifacts(folder: Path) -> list[str]:
    """Returns the artifacts of a run's folder that have a manifest, in the order of their names."""
    paths = [*folder.rglob("manifest.json"), *folder.rglob("*.manifest.json")]
    whole = [path.parent if path.name == "manifest.json" else _file_of(path) for path in paths]
    return sorted(str(path.relative_to(folder)) for path in whole if not any(part.startswith(".") for part in path.parts))


def _file_of(manifest: Path) -> Path:
    """Returns the file that a manifest beside it is of."""
    stem = manifest.name.removesuffix(".manifest.json")
    return next((path for path in (manifest.with_name(stem + end) for end in (".jsonl", ".json")) if path.is_file()), manifest)


def _settings(manifests: Mapping[str, Any], paper: Run, setup: Setup) -> Iterable[Deviation]:
    """Yields the settings of finished stages that differ from the paper's, and stages that the paper has not."""
    whole = replace(paper, sets=paper.settings.benchmarks.names)
    shipped = {rule.artifact: rule.settings.model_dump(mode="json") for rule in run_rules(whole)}
    for artifact, manifest in manifests.items():
        if manifest["stage"] in ("report", "check", "health", "table"):
            continue
        if manifest.get("overrides"):
            yield Deviation("SET and DATA", NONE, " ".join(manifest["overrides"]), "the whole run")
        if artifact not in shipped:
            if not artifact.startswith("released-"):
                yield Deviation(f"stage {manifest['stage']}", "no such stage", "run", artifact)
            continue
        iteration = next((each for each in paper.iterations if each.name == artifact.partition("/")[0]), None)
        tree = paper.tree if iteration is None else iteration.tree
        for name, theirs, ours in differences(shipped[artifact], manifest["settings"]):
            parts = name.split(".")
            if parts[0] not in _NO_SETTING and parts[-1] not in _SPEED:
                yield Deviation(name, _text(theirs), _text(ours), artifact, setup.source_of(name, tree))


def _launches(manifests: Mapping[str, Any], paper: Run, setup: Setup) -> Iterable[Deviation]:
    """Yields processes and GPUs of training that differ."""
    for artifact, manifest in manifests.items():
        if manifest["stage"] not in ("sft", "train"):
            continue
        processes = manifest["launch"].get("processes")
        if processes != paper.launch.processes:
            where = f"recipes/accelerate/{paper.launch.name}.yaml"
            yield Deviation("processes of training", str(paper.launch.processes), str(processes), artifact, where)
        gpus = manifest["hardware"].get("gpus") or []
        ours = " + ".join(f"{gpus.count(name)}x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
        if not _same_hardware(setup.hardware, ours):
            yield Deviation("GPUs of training", setup.hardware, ours, artifact, setup.hardware_source)


def _versions(manifests: Mapping[str, Any], setup: Setup) -> Iterable[Deviation]:
    """Yields the libraries of other versions than those that the paper's code pins."""
    for artifact, manifest in manifests.items():
        if manifest["stage"] not in ("sft", "train", "generate"):
            continue
        wanted = {"vllm"} if manifest["stage"] == "generate" else {*setup.versions} - {"vllm"}
        for name, pinned in setup.versions.items():
            ours = manifest["packages"].get(name) or manifest["packages"].get(f"{name}-cpu")
            if name in wanted and ours is not None and ours.partition("+")[0] != pinned:
                yield Deviation(f"version of {name}", pinned, ours, artifact, setup.versions_source)
    if not setup.versions:
        trained: list[dict[str, str]] = [each["packages"] for each in manifests.values() if each["stage"] in ("sft", "train")]
        told = ", ".join(
            f"{name} {trained[0][name]}"
            for name in ("torch", "transformers", "vllm", "deepspeed")
            if trained and name in trained[0]
        )
        if told:
            yield Deviation("versions of libraries", NOT_STATED, told, "training")


def _rows(manifests: Mapping[str, Any], paper: Run, setup: Setup) -> Iterable[Deviation]:
    """Yields the numbers of rows that differ from those of the paper's data, and a data set of no stated revision."""
    manifest = manifests.get(ROWS)
    if manifest is None:
        return
    for part, rows in setup.rows.items():
        ours = manifest.get("rows", {}).get(part)
        if ours != rows:
            dropped = sum(manifest["counts"].get("dropped", {}).values())
            reason = f" ({dropped} of {manifest['counts']['in']} rows read were dropped)" if dropped else ""
            yield Deviation(f"rows, {part}", str(rows), f"{ours}{reason}", ROWS, setup.rows_source)
    data = manifest["settings"].get("data", {})
    if data.get("dataset") == paper.settings.data.dataset:
        yield Deviation("revision of the data set", NOT_STATED, data.get("revision") or "whatever the hub has", ROWS)


def _judged(folder: Path, judges: Mapping[str, Judge]) -> Iterable[Deviation]:
    """Yields judges that are none of the paper's, and sets of which only a part was asked."""
    for (policy, name), path in set_evaluations(folder).items():
        evaluation = read_set_evaluation(path)
        paper = judges.get(name, judges.get("all"))
        models = dict.fromkeys(each.judge.model for each in evaluation.measures.values() if each.judge is not None)
        for model in models:
            if paper is not None and not paper.is_model(model):
                yield Deviation(f"judge of {name}", paper.words, model, f"{policy}/{name}")
        if evaluation.set.prompts < evaluation.set.of:
            yield Deviation(f"prompts of {name}", str(evaluation.set.of), str(evaluation.set.prompts), f"{policy}/{name}")


def _joined(found: Sequence[Deviation]) -> list[Deviation]:
    """Returns the deviations with those that are equal but for their place put together."""
    places: dict[tuple[str, str, str, str], dict[str, None]] = {}
    for each in found:
        places.setdefault((each.what, each.paper, each.ours, each.source), {})[each.where] = None
    return [Deviation(what, paper, ours, _places([*where]), source) for (what, paper, ours, source), where in places.items()]


def _places(where: Sequence[str]) -> str:
    """Returns places as one text: all where they are few, else the first and how many more."""
    return ", ".join(where) if len(where) <= 3 else f"{', '.join(where[:2])} and {len(where) - 2} more"


def _comment(file: Path, line: int) -> str:
    """Returns the comment on a line of a file, with those of the lines below it that hold nothing else."""
    if not line or not file.is_file():
        return ""
    lines = file.read_text(encoding="utf-8").splitlines()[line - 1 :]
    first = re.search(r"#\s*(.*)$", lines[0]) if lines else None
    if first is None:
        return ""
    words = [first[1]]
    for each in lines[1:]:
        more = re.fullmatch(r"\s+#\s*(.*)", each)
        if more is None:
            break
        words.append(more[1])
    return " ".join(words)


def _same_hardware(paper: str, ours: str) -> bool:
    """Returns whether GPUs are as many and of the kind that the paper states; true where it states none."""
    return paper == NOT_STATED or re.sub(r"\W|nvidia", "", paper.lower()) in re.sub(r"\W|nvidia", "", ours.lower())


def _text(value: Any) -> str:
    """Returns a value as one would write it in a recipe, cut where it is long."""
    text = NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
