"""A recipe of one's own on one's own rows: what `make new` checks, reads and writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import cast

from handbook_ext.core.errors import UserError
from handbook_ext.core.manifests import LISTED
from handbook_ext.core.records import content_id
from handbook_ext.data.offline import OfflineData, form_of_rows, load_offline_data
from handbook_ext.graph.makefile import replaced
from handbook_ext.graph.rules_run import check_rule, data_rule
from handbook_ext.graph.stages import CheckStage, DataStage
from handbook_ext.planning.amounts import mean, measured
from handbook_ext.planning.first_lines import rows_line
from handbook_ext.planning.new_recipe_text import Fitted, recipe_text
from handbook_ext.planning.schedule import ENOUGH, Schedule, fitting_batch, schedules_of
from handbook_ext.recipes.names import NO_RECIPES, RECIPES, read_name, recipe_files
from handbook_ext.recipes.overrides import Override, parse_data
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.settings import DATA_SUFFIXES
from handbook_ext.selection.rules import require

MINE = "mine"
HELD_OUT = 300  # Rows that a proposed split holds out at most; a fifth of fewer rows.
FORMS = {
    "pairs": "prompt, chosen and rejected", "ultrafeedback": "several rated answers, as openbmb/UltraFeedback has them",
    "hh_rlhf": "transcripts, as Anthropic/hh-rlhf has them", "tldr": "comparisons, as openai/summarize_from_feedback has them",
}  # fmt: skip


@dataclass(frozen=True)
class NewRecipe:
    """What was asked for: the recipe's name and file, the one that it begins from, and the folder of its rows."""

    name: str
    file: Path
    base: str
    data: str


def asked_recipe(name: str, base: str, data: str, root: Path = RECIPES) -> NewRecipe:
    """Returns the recipe to be: `mine` is recipes/mine/<method of its base>.yaml, `mine/dpo` and `mine-dpo` say the method.

    Raises UserError for a base that is no recipe, rows that were not named, and a file that is no recipe of one's own.
    """
    if not base:
        raise UserError(
            "FROM: name a recipe to begin from: smollm2-selm (a real checkpoint), tiny-selm (minutes); make list has all"
        )
    if not data:
        raise UserError("DATA: name the folder of your rows, with train.jsonl and test.jsonl (or .parquet)")
    try:
        found = read_name(base, root)
    except UserError as error:
        raise UserError(f"FROM: {error}") from None
    if found.full != found.recipe:
        raise UserError(f"FROM: {base} is a variant or seed of {found.recipe}, and no file; give FROM={found.recipe}")
    folder, _, method = (name or MINE).replace("/", "-", 1).partition("-")
    file = root / folder / f"{method or found.file.stem}.yaml"
    if folder in NO_RECIPES or file.stem == "base" or (file.parent / "base.yaml").is_file():
        raise UserError(f"NAME: {file.parent} holds delivered recipes; name a folder of your own, such as {MINE}")
    return NewRecipe(f"{folder}-{file.stem}", file, base, data)


def new_recipe(asked: NewRecipe, root: Path = RECIPES) -> list[str]:
    """Writes the recipe of what was asked for; returns lines that say what was found in the rows, and what to do next.

    Raises UserError where there is another file of that name, or the rows are unusable or too few; then nothing is written.
    """
    if asked.file.exists():
        raise UserError(f"NAME: {asked.file} is there already; edit it, give another NAME, such as {asked.name}-2, or delete it")
    files = own_files(asked.data)
    # What was chosen for the base by trials is not taken over by the recipes on it.
    lenient = _lenient(resolve(asked.base, root, overrides=files, tuned=False))
    run = resolve(asked.base, root, overrides=[*files, *lenient], tuned=False)
    loaded = _loaded(run, asked)
    fitted = _fitted(run, loaded, asked)
    _write(asked, recipe_text(asked.name, asked.base, asked.file, asked.data, run, fitted), root)
    written = [f"written: {asked.file}", *(each.line for each in fitted)]
    return [*_found(run, loaded), *written, *_notes(run, loaded), *_next(asked, run)]


def _loaded(run: Run, asked: NewRecipe) -> OfflineData:
    """Returns the rows, each with what the recipe needs of it; a UserError names the first unusable one."""
    try:
        loaded = load_offline_data(run.settings.data, run.settings.seed)
        for need in cast("DataStage", data_rule(run).settings).needs:
            for row in loaded.train:
                require(row, need)
    except UserError as error:
        if str(error).startswith(("data.judge_rows", "data.answers")):
            raise UserError(f"FROM: {asked.base} is for the dataset tiny_world alone, not for own rows; give another") from None
        raise UserError(f"DATA: {error}") from None
    return loaded


def own_files(data: str) -> list[Override]:
    """Returns the overrides that read a folder's files; a UserError says how to split where there is one file alone."""
    path = Path(data)
    if path.suffix in DATA_SUFFIXES and os.path.isfile(path):
        out = path.with_name(f"{path.stem}-split")
        raise UserError(
            f"DATA: {data} is one file, and a policy is evaluated on prompts that it has not seen; split it, such as by: "
            f"{_split(path, out)}; then DATA={quote(str(out))}"
        )
    try:
        return parse_data(data)
    except UserError as error:
        alone = [path / f"train{suffix}" for suffix in DATA_SUFFIXES if os.path.isfile(path / f"train{suffix}")]
        if len(alone) != 1 or any(os.path.isfile(path / f"test{suffix}") for suffix in DATA_SUFFIXES):
            raise
        out = path.with_name(f"{path.resolve().name}-split")
        raise UserError(f"{error}, or split the training rows by: {_split(alone[0], out)}; then DATA={quote(str(out))}") from None


def _split(path: Path, out: Path) -> str:
    """Returns a command that shuffles the rows of a file into train and test, a fifth of them held out."""
    folder, file = quote(str(out)), quote(str(path))
    if path.suffix not in LISTED:  # Parquet, which has no lines.
        return (
            f".venv/bin/python -c \"import sys, datasets as d; [p.to_parquet(f'{{sys.argv[2]}}/{{n}}.parquet') for n, p in "
            f'd.Dataset.from_parquet(sys.argv[1]).train_test_split(0.2, seed=1).items()]" {file} {folder}'
        )
    with path.open("rb") as lines:
        count = sum(1 for line in lines if line.strip())
    held = min(HELD_OUT, max(1, count // 5))
    return (
        f"mkdir -p {folder} && shuf {file} > {folder}/all && head -n {held} {folder}/all > {folder}/test.jsonl && "
        f"tail -n +{held + 1} {folder}/all > {folder}/train.jsonl"
    )


def _lenient(run: Run) -> list[Override]:
    """Returns overrides by which rows that cannot be used are dropped and counted, where the recipe would stop at the first."""
    data = run.settings.data
    stops = {"long_prompts": data.long_prompts, "empty_completions": data.empty_completions}
    return [Override(("data", name), "drop", "make new", "") for name, value in stops.items() if value == "error"]


def _fitted(run: Run, loaded: OfflineData, asked: NewRecipe) -> list[Fitted]:
    """Returns the batches that must be smaller for trainings to make ENOUGH steps of these rows.

    Raises UserError where even batches of one would make fewer.
    """
    schedules = schedules_of(cast("CheckStage", check_rule(run).settings), loaded.train, len(loaded.demonstrations))
    found = []
    for section in dict.fromkeys(each.section for each in schedules):
        least = min((each for each in schedules if each.section == section), key=lambda each: each.examples)
        if len(least.rates) >= ENOUGH and (section != "train" or least.examples >= least.global_batch_size):
            continue
        batch = fitting_batch(least.examples)
        if batch is None:
            raise UserError(_too_few(least, len(loaded.train), asked))
        if batch % run.launch.processes == 0:
            micro = min(batch // run.launch.processes, _stated_micro(run, section))
            found.append(Fitted(section, batch, micro, least.global_batch_size, least.examples, -(-least.examples // batch)))
    return found


def _stated_micro(run: Run, section: str) -> int:
    """Returns the micro-batch that a section of the recipe states."""
    sections = {"sft": run.settings.sft, "rank.fit": run.settings.rank.fit, "train": run.settings.train}
    return sections[section].per_device_train_batch_size  # type: ignore[union-attr]


def _too_few(least: Schedule, rows: int, asked: NewRecipe) -> str:
    """Returns that rows are too few, how many it takes, and what takes fewer."""
    share = f", of its part of {least.portions}," if least.portions > 1 else ""
    fewer = ", or give FROM a recipe of fewer data.portions" if least.portions > 1 else ""
    return (
        f"DATA: {asked.data} has {rows:,} training rows, too few for {asked.base}: {least.name} would have {least.examples} "
        f"examples{share} and {ENOUGH} optimizer steps take {ENOUGH} at least; give {least.rows_for(ENOUGH):,} rows or more "
        f"(60 to see anything change){fewer}"
    )


def _write(asked: NewRecipe, text: str, root: Path) -> None:
    """Writes the recipe, and takes it back where it has the name of something else, or does not resolve."""
    there = asked.file.parent.is_dir()
    try:
        replaced(asked.file, text)
    except OSError as error:
        raise UserError(f"NAME: {asked.file} cannot be written ({error.strerror}); give another NAME") from None
    try:
        if recipe_files(root).get(asked.name) != asked.file:
            raise UserError(f"NAME: {asked.name} would be no recipe's name, since it is or ends like a goal; give another NAME")
        resolve(asked.name, root)
    except UserError:
        asked.file.unlink()
        if not there:
            asked.file.parent.rmdir()
        raise


def _found(run: Run, loaded: OfflineData) -> list[str]:
    """Returns what the rows are: how many, of which form, how long."""
    amounts = measured(run, Path("runs") / run.name, loaded, "the files")
    form = run.settings.data.form
    form = form_of_rows(run.settings.data) if form == "auto" else form
    part = {name: mean([getattr(row, name) for row in amounts.pairs]) for name in ("prompt", "chosen", "rejected")}
    lengths = ", ".join(f"{name} {value:,.0f}" for name, value in part.items())
    basis = amounts.lengths_basis.partition(",")[0]
    return [rows_line(run, amounts), f"form: {FORMS[form]}", f"lengths: {lengths} tokens on average ({basis})"]


def _notes(run: Run, loaded: OfflineData) -> list[str]:
    """Returns what a newcomer should know of these rows, and of this beginning."""
    found, data = [], run.settings.data
    seen = {content_id(row.prompt) for row in loaded.train} & {content_id(row.prompt) for row in loaded.test}
    if seen:
        found.append(f"note: {len(seen)} held-out prompts are also training prompts; results on them tell less")
    if data.train_rows is not None and len(loaded.train) + sum(loaded.dropped.values()) >= data.train_rows:
        found.append(f"note: data.train_rows reads the first {data.train_rows:,} rows at most; null reads all")
    if run.settings.model.architecture is not None:
        found.append(
            "note: this policy starts from random weights, so its answers to real prompts are gibberish: it shows how the loop "
            "runs; FROM=smollm2-selm starts from a checkpoint"
        )
    return found


def _next(asked: NewRecipe, run: Run) -> Sequence[str]:
    """Returns what to do next."""
    names = [each.name for each in run.iterations]
    first = "iter1" if "iter1" in names else names[0]
    goals = {
        f"make {asked.name}-check": "rows, prompts that are cut, steps, time, or why it cannot work; nothing trains",
        f"make {asked.name}-plan": "memory, time and disk of each stage on this machine",
        f"make {asked.name}-{first}": f"up to the policy of {first}",
        f"make {asked.name}": "all iterations, evaluation and report",
    }
    width = max(map(len, goals))
    return ["next:", *(f"  {goal:{width}}  {what}" for goal, what in goals.items())]
