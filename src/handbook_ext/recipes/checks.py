"""Recipes checked against the settings; each mistake is one line: where, what, what is allowed."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from pydantic import ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.found_files import found, found_sets
from handbook_ext.recipes.parts import RANKERS
from handbook_ext.recipes.settings import DATA_SUFFIXES, CheckedData, DataSettings, RankSettings, Recipe
from handbook_ext.recipes.yaml_tree import Key, Tree, dotted, nearest, shown

LONGEST = 60
OTHER_FILES = (".csv", ".tsv", ".txt", ".gz", ".zst", ".zip", ".arrow", ".yaml", ".yml", ".xlsx")
TEMPLATES = (".jinja", ".jinja2", ".j2")

# A misspelt name also makes the right one missing: the misspelling is the news.
_ORDER = {"extra_forbidden": 0, "missing": 2}
_NOUNS = {
    "integer": "a whole number", "number": "a number", "string": "text (quote what looks like a number)",
    "boolean": "true or false", "null": "null", "object": "a mapping of settings",
}  # fmt: skip
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "up to", "exclusiveMaximum": "below"}


def validated(tree: Tree, iteration: str = "") -> Recipe:
    """Returns the typed settings; `iteration` stands in the error where the values include its overrides.

    Raises:
        UserError: a section or setting is unknown or missing, or a value is of another type, out of range or
            contradicts another.

    """
    try:
        return Recipe.model_validate(tree.values)
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda each: _ORDER.get(each["type"], 1))
        key, message = _explained(first["type"], first["loc"], first, tree)
        within = f"{iteration}: " if iteration else ""
        raise UserError(f"{tree.where(key)}: {within}{message}") from None


def written(value: Any) -> str:
    """Returns a value as YAML would show it, shortened."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _explained(kind: str, loc: Key, error: Any, tree: Tree) -> tuple[Key, str]:
    """Returns the key where a mistake is written, and what it is."""
    if kind == "value_error":
        message = str(error["ctx"]["error"])
        return mentioned(message, loc, tree), f"{dotted(loc)}: {message}" if loc else message
    if kind == "extra_forbidden":
        return loc, _unknown(loc)
    if kind == "missing":
        purpose = _schema(loc).get("description", "")
        owner = f"{dotted(loc[:-1])} needs the setting" if loc[:-1] else "a recipe needs the section"
        return loc, f"{owner} '{loc[-1]}'" + (f" ({purpose})" if purpose else "") + "; add it"
    key, value = _found_value(loc, tree)
    schema = _schema(key)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    hint = nearest(value, map(str, choices)) if isinstance(value, str) else ""
    return key, f"{dotted(key)}: {written(value)} is not {_allowed(schema)}{hint}"


def _unknown(loc: Key) -> str:
    """Returns the message for a name that a section, or a recipe, does not have."""
    owner = dotted(loc[:-1])
    names = list(_schema(loc[:-1]).get("properties", {}))
    if not owner:
        names = ["base", *names, "iterations"]
    thing = f"{owner} has no setting" if owner else "a recipe has no section"
    return f"{thing} '{loc[-1]}'{nearest(str(loc[-1]), names)}; it has: {', '.join(names)}"


def mentioned(message: str, loc: Key, tree: Tree) -> Key:
    """Returns the key of a setting, else section, that a message names; best one that the recipe itself states."""
    settings: list[Key] = re.findall(r"(\w+)\.(\w+)", message)
    named = [key for key in [*settings, *((*loc, word) for word in re.findall(r"\w+", message))] if key in tree.marks]
    own = [key for key in named if tree.marks[key].file == tree.marks[()].file]
    return [*own, *named, loc][0]


def _found_value(loc: Key, tree: Tree) -> tuple[Key, Any]:
    """Returns the part of a location that exists in the recipe (pydantic adds names of types), and its value."""
    value: Any = tree.values
    for depth, name in enumerate(loc):
        inside = isinstance(value, dict) and name in value
        inside = inside or (isinstance(value, list) and isinstance(name, int))
        if not inside:
            return loc[:depth], value
        value = value[name]
    return loc, value


def _schema(key: Key) -> dict[str, Any]:
    """Returns the JSON schema of the settings at a key, references followed."""
    whole = Recipe.model_json_schema()
    schema = whole
    for name in key:
        schema = _followed(schema, whole)
        if isinstance(name, int):
            schema = schema.get("items", {})
        else:
            schema = schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}
    description = schema.get("description")
    schema = _followed(schema, whole) if key else schema
    return {**schema, "description": description} if description else schema


def _followed(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Returns what a reference stands for, also that of an optional section; other schemas as they are."""
    for choice in schema.get("anyOf", []):
        if "$ref" in choice or choice.get("type") in {"object", "array"}:
            schema = choice
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def _allowed(schema: dict[str, Any]) -> str:
    """Returns what a schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_allowed(choice) for choice in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return "one of: " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"a list, each {_allowed(schema.get('items', {}))}" + (" (at least one)" if "minItems" in schema else "")
    noun = _NOUNS.get(schema.get("type", ""), "a value of this setting")
    return " ".join([noun, *(f"{word} {schema[bound]}" for bound, word in _BOUNDS.items() if bound in schema)])


def derived(settings: Recipe, tree: Tree, engine: str) -> Recipe:
    """Returns the settings with files found, the ranker `auto` decided, and the run's engine."""
    data = _found_data(settings.data, tree)
    rank = _decided_rank(settings.rank, data, tree)
    model, template = settings.model, settings.model.chat_template
    if template is not None and template.endswith(TEMPLATES):
        model = model.model_copy(update={"chat_template": found(("model", "chat_template"), template, tree)})
    if rank.rubric not in (None, "tiny"):
        rank = rank.model_copy(update={"rubric": found(("rank", "rubric"), str(rank.rubric), tree)})
    place = _found_checkpoint(("model", "name_or_path"), model.name_or_path, tree)
    body = _found_checkpoint(("rank", "fit", "model"), rank.fit.model, tree)
    judge = _found_checkpoint(("rank", "model"), rank.model, tree) if RANKERS[rank.ranker].on_device else rank.model
    model = model.model_copy(update={"name_or_path": place})
    rank = rank.model_copy(update={"model": judge, "fit": rank.fit.model_copy(update={"model": body})})
    generate = settings.generate.model_copy(update={"engine": engine})
    sets = found_sets(settings.benchmarks, tree)
    return settings.model_copy(update={"model": model, "data": data, "rank": rank, "generate": generate, "benchmarks": sets})


def _found_checkpoint(key: Key, value: str | None, tree: Tree) -> str | None:
    """Returns a checkpoint's folder, looked for beside the recipe that states it, then from the current folder, or a hub id.

    Raises UserError for what can only be a folder and is none: nothing asks the hub for it.
    """
    _check_checkpoint(key, value, tree)
    if value is None:
        return None
    place = os.path.expanduser(value)
    beside = tree.where(key).file.parent / place
    if os.path.isdir(beside) and os.path.realpath(beside) != os.path.realpath(place):
        return shown(beside)
    if os.path.isdir(place):
        return place
    path_alone = value.startswith((".", "/", "~")) or value.count("/") > 1
    return found(key, place, tree, os.path.isdir) if path_alone else value


def _check_checkpoint(key: Key, value: str | None, tree: Tree) -> None:
    """Raises UserError for a checkpoint that can be neither a folder nor an id of the hub: too long, empty, with a NUL."""
    try:
        if value is not None:
            os.stat(value or "\0")
    except (FileNotFoundError, NotADirectoryError):
        return  # An id of the hub.
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "empty, or with a NUL in it"
        raise UserError(
            f"{tree.where(key)}: {dotted(key)}: {written(value)} is no name of a folder ({reason}); correct it"
        ) from None


def _found_data(data: CheckedData, tree: Tree) -> CheckedData:
    """Returns the data settings with the paths of local files, which win over `dataset`."""
    stated = {"train": data.train, "test": data.test}
    files = [name for name, value in stated.items() if value.endswith(DATA_SUFFIXES)]
    for name, value in stated.items():
        key = ("data", name)
        if len(files) == 1 and name not in files:
            raise UserError(
                f"{tree.where(key)}: data.{name}: '{value}' is not a {', '.join(DATA_SUFFIXES)} file, but data.{files[0]} is "
                "one; give both as files, or neither"
            )
        default = DataSettings.model_fields[name].default
        if not files and data.dataset == "tiny_world" and value != default:
            raise UserError(
                f"{tree.where(key)}: data.{name}: the dataset tiny_world has the split {default} only, not '{value}'; "
                f"remove this line, or give a {', '.join(DATA_SUFFIXES)} file"
            )
        if not files and ("/" in value or value.endswith(OTHER_FILES)):
            raise UserError(
                f"{tree.where(key)}: data.{name}: '{value}' is neither a split nor a {', '.join(DATA_SUFFIXES)} file; "
                "convert the file to one of these"
            )
    if data.sft is not None and data.sft.endswith(DATA_SUFFIXES):
        data = data.model_copy(update={"sft": found(("data", "sft"), data.sft, tree)})
    if not files:
        return data
    paths = {name: found(("data", name), value, tree) for name, value in stated.items()}
    return data.model_copy(update={**paths, "dataset": None})


def _decided_rank(rank: RankSettings, data: DataSettings, tree: Tree) -> RankSettings:
    """Returns the rank settings with `auto` replaced by what the data allow."""
    has_truth = data.dataset == "tiny_world"
    if rank.ranker == "oracle" and not has_truth:
        raise UserError(
            f"{tree.where(('rank', 'ranker'))}: rank.ranker: oracle needs the true reward, which only the dataset "
            "tiny_world has; set ranker: reward_model"
        )
    if rank.ranker != "auto":
        return rank
    return rank.model_copy(update={"ranker": "oracle" if has_truth else "reward_model"})
