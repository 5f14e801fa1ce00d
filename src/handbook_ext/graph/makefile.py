"""A run as make reads it: `runs/<run>/run.mk`, every rule in plain text, and the settings files beside it.

Nothing but names under the folder of the runs gets into the text of a makefile, and those are spelt in letters that neither make
nor a shell minds. Files outside are watched through a stamp, so whatever they are called, make never sees their names.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import yaml

from handbook_ext.core.artifacts import finished_manifest, manifest_path
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import replace_text
from handbook_ext.core.manifests import LISTED
from handbook_ext.core.stage_settings import identity
from handbook_ext.graph.rule import StageRule, devices_each, whole_of
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.iteration import Iteration
from handbook_ext.recipes.run import Run

PLAIN = r"(?!-)[\w./+@,-]+"
"""The form of a word that make and a shell take for itself, and no command takes for an option."""


def write_run(run: Run, runs: Path) -> list[Path]:
    """Writes settings, stamps and run.mk of a run where their content changed; returns those written."""
    rules = run_rules(run)
    texts = {rule.settings_file: settings_text(rule) for rule in rules}
    texts |= {stamp_file(rule): stamp_text(rule.external) for rule in rules if rule.external}
    texts["run.mk"] = run_text(run, rules, runs)
    written = [path for name, text in texts.items() if replaced(path := runs / run.name / name, text)]
    for rule in rules:
        _expose_stale(rule, runs / run.name)
    return written


def begun_with(folder: Path) -> str | None:
    """Returns the engine that a run has begun with, by the first of its artifacts that an engine has made; None where none is."""
    names = ("sft/eval.json", "start/eval.json", "iter*/completions.jsonl", "iter*/eval.json")
    for path in (found for name in names for found in sorted(folder.glob(name))):
        manifest = finished_manifest(path)
        if manifest is not None and "engine" in manifest:
            return str(manifest["engine"]["name"])
    return None


def _expose_stale(rule: StageRule, folder: Path) -> None:
    """Makes a settings file newer than an artifact that its stage must make again, since make looks at times alone.

    Times mislead where a recipe was changed and planned while the stage ran, where an artifact was copied from another run,
    where the clock of another machine was ahead, where a manifest is damaged, and where files of a folder were deleted. Files
    that a device computes are not made again unasked.
    """
    artifact = folder / rule.artifact
    there = [path for path in (artifact, manifest_path(artifact)) if path.exists()]
    if len(there) < 2:
        return  # Make makes it.
    manifest = finished_manifest(artifact)
    if manifest is not None and identity(manifest["settings"]) == identity(rule.settings.model_dump(mode="json")):
        lacking = not artifact.is_file() and not all((artifact / name).exists() for name in manifest["files"])
        if not lacking or rule.on_device:
            return
    settings, made = folder / rule.settings_file, max(path.stat().st_mtime_ns for path in there)
    if settings.stat().st_mtime_ns <= made:
        now = max(time.time_ns(), made + 1_000_000)
        os.utime(settings, ns=(now, now))


@lru_cache(maxsize=4096)
def _setting_text(name: str, value: str) -> str:
    """Returns a setting, given as JSON, in YAML: most sections are those of many stages, and a dump takes long."""
    found: str = yaml.dump({name: json.loads(value)}, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=110)
    return found


def settings_text(rule: StageRule) -> str:
    """Returns the settings file of a stage; raises UserError for a name that is no text, such as one in Latin-1."""
    values = rule.settings.model_dump(mode="json")
    try:
        text = "".join(_setting_text(name, json.dumps(value)) for name, value in values.items())
    except UnicodeEncodeError as error:
        raise UserError(
            f"{rule.settings.recipe}: {error.object!r} is not UTF-8, and no settings file can hold it; rename it"
        ) from None
    return f"# Resolved from recipe {rule.settings.recipe}; edit the recipe, not this file.\n{text}"


def stamp_text(files: Sequence[Path]) -> str:
    """Returns size (bytes) and time (ns) of files outside the run: make looks at these, the stage at the contents."""
    stats = [(str(path), path.stat()) for path in files if path.exists()]
    return "".join(json.dumps([name, stat.st_size, stat.st_mtime_ns]) + "\n" for name, stat in stats)


def run_text(run: Run, rules: Sequence[StageRule], runs: Path) -> str:
    """Returns run.mk: the rules in the order in which they can run, and the goals of the run."""
    folder = str(runs / run.name)
    by_iteration = {each.name: each for each in run.iterations}
    tuned = f" and {run.tuned.file}, tuned over {run.tuned.words}" if run.tuned is not None else ""
    lines = [f"# {run.name}, from {run.file}{tuned}. Written by scripts/plan_goals.py; edit the recipe, not this file."]
    seen: set[str] = set()
    for rule in rules:
        if rule.folder in by_iteration and rule.folder not in seen:
            seen.add(rule.folder)
            lines += ["", _heading(run, by_iteration[rule.folder], rules)]
        lines += ["", *_rule_lines(rule, folder, run)]
    return "\n".join(lines) + "\n"


def targets_of(artifact: str) -> list[str]:
    """Returns the files by which make knows an artifact: the manifest in a folder, or a file and the manifest beside it."""
    path = Path(artifact)
    return [artifact, str(manifest_path(path))] if path.suffix in LISTED else [f"{artifact}/manifest.json"]


def plain(word: str) -> str:
    """Returns a word that is about to stand in a makefile; raises UserError where make or a shell would read more into it."""
    if not re.fullmatch(PLAIN, word):
        raise UserError(
            f"{word!r} cannot be a name that make reads: those have letters, digits and . / + @ , _ - alone, and begin with no "
            "dash; rename it"
        )
    return word


def replaced(path: Path, text: str) -> bool:
    """Puts the text in place by rename, unless it is there already; tells whether it did."""
    try:
        if path.read_bytes() == text.encode():
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
    return True


def _heading(run: Run, each: Iteration, rules: Sequence[StageRule]) -> str:
    """Returns a comment that says what an iteration does."""
    stages = ", ".join(rule.settings.stage for rule in rules if rule.folder == each.name)
    part = f"part {each.index + 1} of {run.settings.data.portions} of the prompts"
    return f"# {each.name} starts from {each.starts_from}; {part}; rule {each.settings.select.rule}: {stages}"


def _rule_lines(rule: StageRule, folder: str, run: Run) -> list[str]:
    """Returns the lines of one rule.

    A file and its manifest are one target, so that a deleted file is made again as well.
    """
    targets = targets_of(rule.artifact)
    needed = [rule.settings_file, *([stamp_file(rule)] if rule.external else [])]
    for name in dict.fromkeys(rule.inputs):
        needed += targets_of(whole_of(name))
    # Behind the bar: what must be there first, and whose time then does not matter.
    waited = [target for name in dict.fromkeys(rule.after) for target in targets_of(name)]
    sign = "&:" if len(targets) > 1 else ":"
    head = " ".join(plain(f"{folder}/{each}") for each in targets)
    prerequisites = [f"    {plain(f'{folder}/{name}')}" for name in dict.fromkeys(needed)]
    prerequisites += [f"    {'| ' * (not place)}{plain(f'{folder}/{name}')}" for place, name in enumerate(waited)]
    return [
        f"{head} {sign} \\",
        *(f"{each} \\" for each in prerequisites[:-1]),
        prerequisites[-1],
        f"\t{_command(rule, folder, run)}",
    ]


def _command(rule: StageRule, folder: str, run: Run) -> str:
    """Returns the command of a stage; on a CPU all start in a warm process, but for vLLM, which starts processes of its own."""
    argument = plain(f"{folder}/{rule.folder}" if rule.folder else folder)
    # On a CPU a thread per process, as warm processes have: small models gain nothing from more, and several compete.
    threads = "OMP_NUM_THREADS=$(THREADS) " if run.launch.on_cpu and run.launch.name != "cpu" else ""
    return f"{threads}{_launcher(rule, run)} scripts/{rule.script} {argument}"


def _launcher(rule: StageRule, run: Run) -> str:
    """Returns the words before a stage's script."""
    launch = run.launch
    if launch.name == "cpu":
        return "$(PYTHON)" if rule.engine == "vllm" else "$(WARM)"
    if rule.launcher == "accelerate":
        processes = "" if launch.gpus is None else f" --num_processes {launch.gpus}"
        return f"$(ACCELERATE) --config_file {plain(f'recipes/accelerate/{launch.name}.yaml')}{processes}"
    if rule.launcher == "plain":
        return "$(PYTHON)"
    each = devices_each(rule, run)
    devices = "" if each == 1 else f" --devices-each {each}"
    return f"$(PYTHON) -m handbook_ext.core.per_device --processes {launch.processes // each}{devices}"


def stamp_file(rule: StageRule) -> str:
    """Returns the file that changes whenever a file outside the run does that the stage reads."""
    return rule.settings_file.removesuffix(".yaml") + ".files"
