"""The settings that determine each stage of a run, taken from its recipe and written into its folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.artifacts import sha256_of
from handbook_ext.ensemble import ensemble
from handbook_ext.errors import UserError
from handbook_ext.recipe_checks import dotted
from handbook_ext.recipe_files import Key, Tree, read_yaml
from handbook_ext.recipe_runs import RECIPES, Iteration, Run, recipe_files, resolve
from handbook_ext.settings import ENGINES_HERE, RANKERS_HERE, Recipe

__all__ = [
    "RECIPES", "Iteration", "Run", "beyond", "load_stage", "make_variables", "recipe_files", "resolve", "shown_settings",
    "stage_settings", "write_run",
]  # fmt: skip

Settings = dict[str, Any]


def stage_settings(run: Run) -> dict[str, Settings]:
    """Returns, for each settings file of a run by its path in the run's folder, what determines that stage."""
    base = run.settings.model_dump()
    same = {"recipe": run.recipe, "seed": run.settings.seed}
    stages: dict[str, Settings] = {"data/data.yaml": {"stage": "data", **same, "data": base["data"]}}
    if run.settings.sft is not None:
        kept = {name: base["data"][name] for name in ("long_prompts", "empty_completions")}
        stages["sft/sft.yaml"] = {"stage": "sft", **same, "model": base["model"], **kept, "sft": base["sft"]}
    if run.fitted:
        fit = {name: base["rank"][name] for name in ("max_length", "fit")}
        body = {"policy_from": None if run.start == "start" else run.start, "model": base["model"]}
        stages["ranker/ranker.yaml"] = {"stage": "ranker", **same, **body, "rank": fit}
    start = {**same, "iteration": run.start, "policy_from": None if run.start == "start" else run.start}
    stages[f"{run.start}/evaluate.yaml"] = _evaluation(start, run.settings)
    for each in run.iterations:
        stages.update(_iteration_stages(run, each))
    stages["report.yaml"] = {
        "stage": "report", **same, "iterations": [run.start, *(each.name for each in run.iterations)],
        "report": base["report"],
    }  # fmt: skip
    for settings in stages.values():
        template = settings.get("model", {}).get("chat_template")
        if template is not None and Path(template).is_file():
            settings["template_sha256"] = sha256_of(Path(template))
    return stages


def _iteration_stages(run: Run, iteration: Iteration) -> dict[str, Settings]:
    """Returns the settings files of one iteration."""
    whole = iteration.settings.model_dump()
    same = {"recipe": run.recipe, "seed": run.settings.seed, "iteration": iteration.name}
    after = {**same, "policy_from": iteration.policy_from}
    model, portion, limits = whole["model"], _portion(run, iteration), _limits(iteration.settings)
    stages: dict[str, Settings] = {}
    if iteration.sampled:
        stages["generate"] = {
            **after, "portion": portion, "model": model, "generate": whole["generate"], "limits": limits,
        }  # fmt: skip
    if iteration.judged:
        self_judged = {"policy_from": iteration.policy_from} if whole["rank"]["ranker"] == "self" else {}
        rubric = whole["rank"]["rubric"]
        if rubric is not None and Path(rubric).is_file():
            self_judged["rubric_sha256"] = sha256_of(Path(rubric))
        stages["rank"] = {**same, **self_judged, "model": model, "rank": whole["rank"]}
    review = _review(run, iteration) if iteration.settings.select.rule == "review" else {}
    stages["select"] = {**after, "reads": iteration.made_from, "portion": portion, "select": whole["select"], **review}
    if iteration.scored:
        stages["score"] = {**after, "model": model, "score": whole["score"], "limits": limits, **_plan(run, iteration)}
    stages["train"] = {**after, "model": model, "train": whole["train"], "limits": limits}
    if iteration.watched:
        reads = ["pairs.jsonl", "policy"]
        reads += ["completions.jsonl"] * iteration.sampled + ["rankings.jsonl"] * iteration.judged
        stages["health"] = {**same, "reads": [*reads, *["eval.json"] * (whole["health"]["max_kl"] is not None)]}
        stages["health"]["health"] = whole["health"]
    files = {f"{iteration.name}/{name}.yaml": {"stage": name, **values} for name, values in stages.items()}
    own = {**same, "policy_from": iteration.name}
    if iteration.settings.evaluate.implicit_reward:
        own["first"] = None if run.start == "start" else run.start
    return {**files, f"{iteration.name}/evaluate.yaml": _evaluation(own, iteration.settings)}


def _review(run: Run, iteration: Iteration) -> Settings:
    """Returns what selection by margins reads: the measure, the terms of the ensemble, and the stores of the run so far."""
    select, measure = iteration.settings.select, iteration.settings.train.measure
    policies = [run.start, *(each.name for each in run.iterations)]
    policies = policies[: policies.index(iteration.name)]
    by_margin = select.bootstrap > 0 or (select.keep > 0 and select.keep_by == "margin")
    terms = []
    if by_margin:
        terms = ensemble(policies, gamma=select.gamma, against=select.margin_reference, with_reference=measure.reference)
    earlier = [each.name for each in run.iterations if each.scored and each.name in policies]
    return {
        "measure": {"reference": measure.reference, "per_token": measure.per_token},
        "terms": [{"weight": t.weight, "policy": t.policy, "reference": t.reference} for t in terms],
        "stores": [*earlier, iteration.name] if iteration.reviewed else [],
    }  # fmt: skip


def _plan(run: Run, iteration: Iteration) -> Settings:
    """Returns what is scored: training's own batches, or before a review the texts that each policy must score."""
    train = iteration.settings.train
    sizes = {"per_device_train_batch_size": train.per_device_train_batch_size, "head_chunk": train.head_chunk}
    sizes["bf16"] = train.bf16
    if not iteration.reviewed:
        return {"plan": {"global_batch_size": train.global_batch_size, **sizes, "explore": train.alpha > 0}}
    select, review = iteration.settings.select, _review(run, iteration)
    offline, samples = ["offline"] * (select.keep > 0), ["samples"] * (select.bootstrap > 0)
    texts = {iteration.policy_from or run.start: [*offline, *samples]}
    for term in review["terms"]:
        for policy in filter(None, (term["policy"], term["reference"])):
            texts.setdefault(policy, [*(offline if select.keep_by == "margin" else []), *samples])
    portion = _portion(run, iteration)
    return {"sizes": sizes, "portion": portion, "texts": texts, "stores": review["stores"][:-1]}


def _evaluation(head: Settings, settings: Recipe) -> Settings:
    """Returns the settings of an evaluation."""
    sections = {name: getattr(settings, name).model_dump() for name in ("model", "rank", "evaluate")}
    if settings.data.dataset == "tiny_world":
        sections["rank"]["ranker"] = "oracle"  # Whoever labels the pairs, answers are measured by the true reward.
    elif settings.rank.ranker == "self":
        sections["rank"]["ranker"] = "reward_model"  # rank.model, or one that is fitted: no policy marks its own exam.
    return {"stage": "evaluate", **head, **sections, "limits": _limits(settings)}


def _limits(settings: Recipe) -> Settings:
    """Returns how many tokens there may be, and what becomes of a prompt that leaves no room."""
    train = settings.train
    return {
        "max_length": train.max_length, "max_prompt_length": train.max_prompt_length,
        "long_prompts": settings.data.long_prompts,
    }  # fmt: skip


def _portion(run: Run, iteration: Iteration) -> Settings:
    """Returns which of how many equal consecutive parts of the data the iteration uses, counted from 0."""
    return {"index": iteration.index, "of": run.settings.data.portions}


def make_variables(run: Run) -> str:
    """Returns what the Makefile needs to know of a run; comments would leave spaces in the values."""
    names = " ".join(each.name for each in run.iterations)
    kinds = {
        kind: " ".join(each.name for each in run.iterations if getattr(each, kind))
        for kind in ("sampled", "judged", "reviewed", "scored", "watched")
    }
    values = {
        "iterations": names, "start": run.start, **kinds, "fitted": "yes" if run.fitted else "", "launch": run.settings.launch,
        "files": " ".join(local_files(run.settings)),
        "checkpoint": " ".join(folder_files(run.settings.model.name_or_path)),
        "judge": " ".join(sorted({file for rank in run.ranks for file in folder_files(rank.model)})),
        "kl": "yes" if run.settings.health.max_kl is not None else "",
    }  # fmt: skip
    return _header(run) + "".join(f"{name}.{run.name} := {value}".rstrip() + "\n" for name, value in values.items())


def local_files(settings: Recipe) -> list[str]:
    """Returns the data files that the recipe names: make looks at their time, the data stage at their content."""
    return [name for name in (settings.data.train, settings.data.test, settings.data.sft) if name and Path(name).is_file()]


def folder_files(source: str | None) -> list[str]:
    """Returns the files of a checkpoint that is a local folder, adapters and all; none for a name on the hub."""
    folder = None if source is None else Path(source)
    return sorted(map(str, filter(Path.is_file, folder.rglob("*")))) if folder is not None and folder.is_dir() else []


def beyond(run: Run) -> list[str]:
    """Returns a line for each engine or ranker that a recipe names and this version does not have: its stage will refuse."""
    names: set[tuple[str, str, tuple[str, ...]]] = set()
    for each in run.iterations:
        if each.sampled:
            names.add(("generate.engine", each.settings.generate.engine, ENGINES_HERE))
        if each.judged:
            names.add(("rank.ranker", each.settings.rank.ranker, RANKERS_HERE))
    return sorted(
        f"{setting} {value} is not part of this version, so the stage that needs it will stop; it has: {', '.join(here)}"
        for setting, value, here in names
        if value not in here
    )


def write_run(run: Run, runs: Path) -> list[Path]:
    """Writes the settings files and run.mk of a run where their content changed; returns those written."""
    texts = {
        path: _header(run) + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110)
        for path, settings in stage_settings(run).items()
    }
    texts["run.mk"] = make_variables(run)
    return [path for name, text in texts.items() if _replaced(path := runs / run.name / name, text)]


def _header(run: Run) -> str:
    """Returns the first line of every file that is derived from a recipe."""
    return f"# resolved from recipe {run.recipe}; edit the recipe, not this file\n"


def _replaced(path: Path, text: str) -> bool:
    """Puts the text in place by rename, unless it is there already; tells whether it did."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def load_stage(path: Path) -> Settings:
    """Returns the resolved settings of a stage; a UserError says so where they are not written yet."""
    if not path.is_file():
        raise UserError(f"{path}: the settings of this stage are missing; run make, or scripts/resolve_recipe.py first")
    return read_yaml(path).values


def shown_settings(run: Run, iteration: str | None = None) -> list[str]:
    """Returns every resolved setting, of one iteration or of the recipe itself, each with where it is written."""
    chosen = None if iteration is None else run.iteration(iteration)
    settings, tree, lines = run.settings, run.tree, []
    if chosen is not None:
        settings, tree = chosen.settings, chosen.tree
        start = chosen.policy_from or settings.model.name_or_path
        portion = f"portion {chosen.index + 1} of {settings.data.portions}"
        lines = [f"# {chosen.name} of {run.name} starts from {start} and uses {portion}"]
    stated = Recipe.model_validate(tree.values)
    before = dict(_leaves(stated.model_dump(), ()))
    for key, value in _leaves(settings.model_dump(), ()):
        changed = ", resolved" if before.get(key) != value else ""
        lines.append(f"{dotted(key)}: {_inline(value)}   # {_origin(key, tree)}{changed}")
    return lines


def _leaves(value: Any, key: Key) -> list[tuple[Key, Any]]:
    """Returns the settings below a key in the order of the sections; a list is one setting."""
    if not isinstance(value, dict):
        return [(key, value)]
    return [leaf for name, inner in value.items() for leaf in _leaves(inner, (*key, name))]


def _origin(key: Key, tree: Tree) -> str:
    """Returns file and line where a setting is stated, or that it is a default."""
    return str(tree.marks[key]) if key in tree.marks else "default"


def _inline(value: Any) -> str:
    """Returns a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000)
    return text.removesuffix("...\n").strip()
