"""Public prompt sets in the forms in which they are published, and which of their prompts training has seen."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, OfflinePair, content_id, user
from handbook_ext.core.set_records import SetPrompt
from handbook_ext.data.files import rows_of
from handbook_ext.data.row_checks import RawRow, check_prompt, messages, row_name
from handbook_ext.recipes.settings_benchmarks import REMOTE

PROMPT = ("turns", "instruction", "prompt", "text")
"""Columns that hold a prompt, the first that a row has: FastChat's, AlpacaEval's and Evol-Instruct's, the hub's, Vicuna's."""
NAME = ("question_id", "prompt_id", "idx", "id", "prompt_idx")
CATEGORY = ("category", "dataset", "skill")
ANSWER = ("output", "choices", "text")


def read_prompt_set(
    source: str, *, rows: int | None = None, references: str | None = None, outputs: Mapping[str, str] | None = None,
) -> tuple[list[SetPrompt], int]:  # fmt: skip
    """Returns the first `rows` prompts of a set with their reference answers and stored outputs, and how many the set has.

    Reference answers belong to a prompt by its name, outputs by their text or, where they have none, by the name.
    Raises UserError for a file that cannot be had, a row without a prompt, two rows of one name, or outputs of other prompts.
    """
    prompts = [_prompt(where, row) for where, row in rows_of(fetched(source), source)]
    if not prompts:
        raise UserError(f"{source}: has no row; give a file with one prompt in each")
    name, count = Counter(each.prompt_id for each in prompts).most_common(1)[0]
    if count > 1:
        raise UserError(f"{source}: {count} rows are called {name!r}; give each a name of its own ({', '.join(NAME)})")
    if references is not None:
        found = rows_of(fetched(references), references)
        by_name = {row_name(where, _first(row, NAME)): _turns(where, row) for where, row in found}
        # Those of the file alone: FastChat's questions hold some of their own, which its judge is not shown.
        prompts = [each.model_copy(update={"references": by_name.get(each.prompt_id, [])}) for each in prompts]
        if not any(each.references for each in prompts):
            raise UserError(
                f"{references}: has no reference answer to any prompt of {source}, such as {prompts[0].prompt_id}; they belong "
                f"together by {', '.join(NAME)}"
            )
    for model, place in (outputs or {}).items():
        prompts = _with_outputs(prompts, model, place)
    return prompts[:rows], len(prompts)


def held_out_prompts(pairs: Sequence[OfflinePair], rows: int | None) -> tuple[list[SetPrompt], int]:
    """Returns the first held-out prompts of a run as a set, and how many there are."""
    return [SetPrompt(prompt_id=row.prompt_id, prompt=row.prompt) for row in pairs[:rows]], len(pairs)


def marked(prompts: Sequence[SetPrompt], training: Iterable[Messages]) -> list[SetPrompt]:
    """Returns the prompts, marked where a user's turn of any training prompt has the same words as their first question.

    Case, white space and the forms of Unicode do not tell two texts apart.
    """
    seen = {_plain(message["content"]) for prompt in training for message in prompt if message["role"] == "user"}
    return [each.model_copy(update={"seen": _plain(each.prompt[-1]["content"]) in seen}) for each in prompts]


def _plain(text: str) -> str:
    """Returns a text without what does not tell it apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _prompt(where: str, row: RawRow) -> SetPrompt:
    """Returns the prompt of a row; raises UserError where there is none."""
    found = _first(row, PROMPT)
    turns = [found] if isinstance(found, str) else found
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: has no prompt; one of the columns {', '.join(PROMPT)} must hold a text, or the user's turns")
    if all(isinstance(turn, dict) for turn in turns):
        prompt, follow_ups = messages(where, "prompt", turns), []
        check_prompt(where, prompt, None)
    elif all(isinstance(turn, str) and turn.strip() for turn in turns):
        prompt, follow_ups = user(turns[0]), turns[1:]
    else:
        raise UserError(f"{where}: a turn of the prompt is empty or no text; repair the row")
    name, category = row_name(where, _first(row, NAME)), _first(row, CATEGORY)
    return SetPrompt(
        prompt_id=content_id(prompt, follow_ups) if name is None else name, prompt=prompt, follow_ups=follow_ups,
        category="" if category is None else str(category), references=_texts(where, row.get("reference")),
    )  # fmt: skip


def _with_outputs(prompts: list[SetPrompt], model: str, place: str) -> list[SetPrompt]:
    """Returns the prompts with the stored outputs of a model; raises UserError where one has none."""
    by_text: dict[str, str] = {}
    by_name: dict[str | None, str] = {}
    for where, row in rows_of(fetched(place), place):
        answer = _turns(where, row)
        if not answer:
            raise UserError(f"{where}: has no answer in any of {', '.join(ANSWER)}; repair the row")
        question = _first(row, ("instruction", "prompt"))
        if isinstance(question, str):
            by_text[_plain(question)] = answer[0]
        by_name[row_name(where, _first(row, NAME))] = answer[0]
    found = []
    for each in prompts:
        text = by_text.get(_plain(each.prompt[-1]["content"]), None if by_text else by_name.get(each.prompt_id))
        if text is None:
            raise UserError(f"{place}: has no output for prompt {each.prompt_id}; give the outputs of {model} on this very set")
        found.append(each.model_copy(update={"outputs": {**each.outputs, model: text}}))
    return found


def _turns(where: str, row: RawRow) -> list[str]:
    """Returns the texts of an answer, one per turn."""
    found = _first(row, ANSWER)
    if isinstance(found, list) and found and isinstance(found[0], dict):
        found = found[0].get("turns")
    return _texts(where, found)


def _texts(where: str, value: Any) -> list[str]:
    """Returns the texts of a column that holds one, several or none; raises UserError for anything else."""
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: an answer is {str(value)[:40]!r}, but must be a text, or one for each turn; repair the row")
    return texts


def _first(row: RawRow, names: Sequence[str]) -> Any:
    """Returns the first of the columns that a row has, whatever their case; None where it has none."""
    lower = {key.lower(): value for key, value in row.items()}
    return next((lower[name] for name in names if lower.get(name) is not None), None)


def fetched(source: str) -> Path:
    """Returns a local file, or where one was put that is fetched; raises UserError where it cannot be had."""
    if not source.startswith(REMOTE):
        return Path(source)
    try:
        return Path(datasets.DownloadManager().download(source))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: cannot be fetched ({reason}); check the network, or name a local copy") from None
