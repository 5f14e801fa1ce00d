"""The text of a recipe of one's own: what differs from its base, and what one may change first, as comments. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from shlex import quote
from typing import Any

from handbook_ext.recipes.overrides import inline
from handbook_ext.recipes.run import Run
from handbook_ext.recipes.settings import Recipe

# Settings of a section that one wants to change first, each with what it does.
KNOBS = {
    "model": {"name_or_path": "a hub id, or a folder with safetensors and a tokenizer"},
    "data": {
        "portions": "parts of the rows, one for each iteration; 1 gives every iteration all rows",
        "portion_rows": "rows of a part at most; null is no limit",
        "train_rows": "rows that are read at most, from the first on; null is all",
        "test_rows": "the same of the held-out rows",
    },
    "generate": {
        "num_completions": "samples per prompt: the best and the worst become a pair, so more find better ones, and take longer",
        "temperature": "of the samples; 0 is greedy, and all samples of a prompt the same",
        "max_new_tokens": "tokens of a sample at most",
    },
    "rank": {
        "ranker": "who says which sample is better: reward_model (fitted to these rows), pairrm, judge, self",
    },
    "train": {
        "global_batch_size": "pairs of an optimizer step; smaller makes more steps of the same rows",
        "per_device_train_batch_size": "pairs that are in memory at once; less memory, the same result",
        "beta": "tie to the policy before: smaller lets it move further away",
        "learning_rate": "peak of each iteration; too small changes nothing, too large forgets how to write",
        "num_train_epochs": "passes over the pairs of an iteration",
        "alpha": "SELM's exploration; 0 is iterative DPO",
        "max_length": "tokens of prompt and answer together; what is longer is cut",
        "max_prompt_length": "tokens of a prompt; null is no limit of its own",
    },
    "evaluate": {
        "prompts": "held-out prompts that every policy answers; null is all",
        "max_new_tokens": "tokens of such an answer at most",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """A batch that was made smaller for the rows: the section, the batch and its micro-batch, what it was, examples, steps."""

    section: str
    batch: int
    micro: int
    before: int
    examples: int
    steps: int

    @property
    def why(self) -> str:
        """Returns the reason."""
        return f"{self.before} before: {self.examples:,} examples make {self.steps} steps so"

    @property
    def line(self) -> str:
        """Returns the change in words."""
        return f"set for these rows: {self.section}.global_batch_size {self.batch} ({self.why})"


def recipe_text(name: str, base: str, file: Path, data: str, run: Run, fitted: Sequence[Fitted]) -> str:
    """Returns the recipe: `run` is its base on the rows in question, `fitted` the batches that these need."""
    own = _own(name, data, run, fitted)
    lines = [
        f"# {name} on {Path(data).resolve().name}",
        f"# Written by make new NAME={name} FROM={base} DATA={quote(data)}",
        "#",
        f"# All that is not stated here is as in {base}, and the lines behind # show what that is. To change one, take away the",
        "# # and the blank behind it, in the line of its section too where that has them; then make the check again.",
        f"# Every setting there is, and the file that states it: .venv/bin/python scripts/resolve_recipe.py {name} --show",
        f"base: {inline(relpath(run.file, file.parent))}",
    ]
    for section in dict.fromkeys([*KNOBS, *own]):
        lines += _section(section, own.get(section, {}), _shown(section, run), run)
    last = run.iterations[-1].name
    more = f"iter{int(last.removeprefix('iter')) + 1}"
    lines += [
        "# One iteration more: add `iterations: {" + more + ": {}}`"
        + (f", and data.portions: {len(run.iterations) + 1}" if run.settings.data.portions > 1 else "")
        + (f"; one less: `iterations: {{{last}: null}}`." if len(run.iterations) > 1 else "."),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _own(name: str, data: str, run: Run, fitted: Sequence[Fitted]) -> dict[str, dict[str, tuple[Any, str]]]:
    """Returns what the recipe states itself, by section: each value with its comment."""
    found = run.settings.data
    files: dict[str, tuple[Any, str]] = {
        "train": (found.train, "your rows"),
        "test": (found.test, "held out, for evaluation"),
    }
    if found.sft is not None:
        files["sft"] = (found.sft, "demonstrations for SFT")
    for key, what in (("long_prompts", "a prompt that leaves no room"), ("empty_completions", "an empty answer")):
        if run.tree.where(("data", key)).file == Path(f"make new data.{key}"):
            files[key] = ("drop", f"{what} drops its row, counted; error stops there instead")
    own: dict[str, dict[str, tuple[Any, str]]] = {"data": files}
    for each in fitted:
        section, _, inner = each.section.partition(".")
        values = {"global_batch_size": each.batch, "per_device_train_batch_size": each.micro}
        if inner:
            own.setdefault(section, {})[inner] = (values, each.why)
        else:
            own[section] = {"global_batch_size": (each.batch, each.why), "per_device_train_batch_size": (each.micro, "")}
    return own | {"report": {"title": (f"{name} on {Path(data).resolve().name}", "")}}


def _shown(section: str, run: Run) -> dict[str, tuple[Any, str]]:
    """Returns the settings of a section to be shown, each with its inherited value and what it does."""
    if section == "generate" and not any(each.needs.samples for each in run.iterations):
        return {}  # Nothing is sampled to train on.
    values = Recipe.model_validate(run.tree.values).model_dump().get(section) or {}
    shown = {}
    for key, what in KNOBS.get(section, {}).items():
        value = values[key]
        if section == "model" and value is None:
            shown[key] = ("path/to/checkpoint", f"{what}; sft: null trains it as it is")
        else:
            shown[key] = (value, what + _otherwise(section, key, run))
    return shown


def _otherwise(section: str, key: str, run: Run) -> str:
    """Returns which iterations state another value, which wins over that of the section."""
    if section not in ("generate", "rank", "train"):
        return ""
    place, base = (section, key), run.tree
    other = {
        each.name: getattr(getattr(each.settings, section), key)
        for each in run.iterations
        if place in each.tree.marks and each.tree.where(place) != base.where(place)
    }
    return "".join(f"; {name} states {inline(value)} itself" for name, value in other.items())


def _section(section: str, own: Mapping[str, tuple[Any, str]], shown: Mapping[str, tuple[Any, str]], run: Run) -> list[str]:
    """Returns the lines of a section: what is stated, then what is inherited, as comments; nothing of an empty one."""
    rest = {key: value for key, value in shown.items() if key not in own}
    if not own and not rest:
        return []
    lines = [(f"{section}:" if own else f"# {section}:", "")]
    lines += [(f"  {key}: {inline(value)}", what) for key, (value, what) in own.items()]
    lines += [(f"#   {key}: {inline(value)}", what) for key, (value, what) in rest.items()]
    width = min(max(len(text) for text, _ in lines), 44)
    return [f"{text:{width}}  # {what}" if what else text for text, what in lines]
