"""The names of recipes and runs: which there are, and what a name asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.yaml_tree import Tree, merged, nearest, read_recipe, read_yaml, shown

RECIPES = Path("recipes")
TUNING = "tuning"
NO_RECIPES = ("accelerate", "tables", TUNING)
RENAMED = "renamed.yaml"
# A recipe's name is part of goals, folders and make's text, so it has nothing that one of them minds.
_USABLE = re.compile(r"\w[\w.-]*")
PAPER_TABLE, PAPER_FIGURE, COMPARE, MATRIX, LEDGER = "paper-table", "paper-figure", "compare", "matrix", "ledger-verify"
NEW, PLANTED = "new", "planted"
# Goals of the Makefile itself, and how those of tables begin: no recipe may be called so.
PROJECT = (
    "help", "list", "setup", "test", "test-slow", "test-liger", "test-vllm", "test-distributed", "test-slurm", "lint", "bench",
    "bench-growth", "bench-generation", "bench-rows", "bench-gpu", "calibrate", "stability", "mutants", "fuzz", "torture",
    PAPER_TABLE, PAPER_FIGURE, COMPARE, MATRIX, LEDGER, NEW, PLANTED,
)  # fmt: skip
TABLE = "table-"
TUNE, TRIALS = "tune-", "-trials"
KEEP = "keep-"
"""What is put before the goal of a table, or before all tables, to keep what is finished of their runs."""
# What is put behind a run's name means a goal, so no recipe may end like one.
_SUFFIX, _OF_SEED = r"iter\d+|report|seeds|why|plan|check|verify|eval|explain|push|submit", r"seed(0|[1-9][0-9]{0,18})"
_GOAL = re.compile(rf"(.+?)-({_SUFFIX})")
_SEED = re.compile(rf"(.+)-{_OF_SEED}")


@dataclass(frozen=True)
class RunName:
    """What the name of a run says: `<recipe>[-<variant>...][-seed<K>]`."""

    full: str
    recipe: str
    file: Path
    variants: tuple[str, ...] = ()
    seed: int | None = None


def recipe_files(root: Path = RECIPES) -> dict[str, Path]:
    """Returns every recipe's name and file: recipes/<model>/<method>.yaml is <model>-<method>."""
    return _scanned(root)[0]


def unusable_files(root: Path = RECIPES) -> list[str]:
    """Returns a line for each file that no goal could reach, so that it is told and not overlooked."""
    return list(_scanned(root)[1].values())


def _scanned(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns the recipes, and a line for each name that cannot be one; the folders are read again when one has changed."""
    folders = [root, *(path for path in root.glob("*") if path.is_dir())]
    return _scan(root, tuple(path.stat().st_mtime_ns for path in folders if path.is_dir()))


@lru_cache(maxsize=8)
def _scan(root: Path, times: tuple[int, ...]) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns what a folder of these times holds."""
    found: dict[str, Path] = {}
    unusable: dict[str, str] = {}
    for path in sorted(root.glob("*/*.yaml")):
        name = f"{path.parent.name}-{path.stem}"
        if path.name == "base.yaml" or path.parent.name in NO_RECIPES:
            continue
        reason = "is no file, as a recipe is" if not path.is_file() else unreachable(path)
        if reason is not None:
            unusable[name] = f"{shown(path)!r} {reason}; rename the file"
        elif name in found:
            unusable[name] = f"{shown(path)}: {shown(found[name])} is called {name} as well; rename one of the two"
        else:
            found[name] = path
    return {name: path for name, path in found.items() if name not in unusable}, unusable


def unreachable(path: Path) -> str | None:
    """Returns why no goal can reach a recipe of that name, so that it is told; None where one can."""
    name = f"{path.parent.name}-{path.stem}"
    if path.name == "base.yaml" or path.parent.name in NO_RECIPES:
        others = f"{', '.join(NO_RECIPES[:-1])} and {NO_RECIPES[-1]}"
        return f"is no recipe: base.yaml is for others to build on, and {others} hold other files"
    if not all(_USABLE.fullmatch(part) for part in (path.parent.name, path.stem)):
        return "is no recipe's name: use letters, digits, '.', '_' and '-' alone"
    if name in PROJECT or name.startswith((TABLE, TUNE, f"{KEEP}table")) or _GOAL.fullmatch(name) or _SEED.fullmatch(name):
        return "is called like a goal of another recipe, or of make"
    return None


def read_name(name: str, root: Path = RECIPES) -> RunName:
    """Returns what a run's name says; a UserError tells what is close to a name that says nothing."""
    files = recipe_files(root)
    with_seed = _SEED.fullmatch(name) if name not in files else None
    bare, seed = (with_seed[1], int(with_seed[2])) if with_seed else (name, None)
    found = [RunName(name, bare, files[bare], (), seed)] if bare in files else []
    for recipe in sorted((each for each in files if bare.startswith(f"{each}-")), key=len, reverse=True):
        wanted = bare[len(recipe) + 1 :].split("-")
        known = variants_of(files[recipe])
        if len(set(wanted)) == len(wanted) and all(each in known for each in wanted):
            found.append(RunName(name, recipe, files[recipe], tuple(wanted), seed))
    if not found:
        raise _no_recipe(name, bare, files, root)
    if len(found) > 1:
        one, other = found[:2]
        raise UserError(
            f"'{name}' is {shown(one.file)}, and also the variant {'-'.join(other.variants)} of {shown(other.file)}; rename one"
        )
    return found[0]


def variants_of(file: Path) -> list[str]:
    """Returns the names of a recipe's variants, its own and inherited ones."""
    return variants_in(read_recipe(file))


def variants_in(tree: Tree) -> list[str]:
    """Returns the names of the variants of a recipe that was read; a UserError where one is no mapping, or its name a goal."""
    variants = tree.values.get("variants") or {}
    if not isinstance(variants, dict):
        raise UserError(f"{tree.where(('variants',))}: variants must be a mapping, such as {{noise20: {{data: {{...}}}}}}")
    for name, values in variants.items():
        if re.fullmatch(rf"{_SUFFIX}|{_OF_SEED}", name):
            raise UserError(
                f"{tree.where(('variants', name))}: variants.{name} is called like a goal or a seed, and no goal could ask for "
                "it; rename it"
            )
        if not re.fullmatch(r"[A-Za-z]\w*", name) or not isinstance(values, dict):
            raise UserError(
                f"{tree.where(('variants', name))}: variants.{name} must be a word of letters, digits and '_' with a mapping of "
                "sections"
            )
    return list(variants)


def varied(name: RunName) -> Tree:
    """Returns the tree of a run's recipe with its variants laid over it, without what overrides it and its seed."""
    tree = read_recipe(name.file)
    variants_in(tree)
    variants, tree = tree.below(("variants",)) if "variants" in tree.values else None, tree.without("variants")
    for each in name.variants:
        if variants is not None:
            tree = merged(tree, variants.below((each,)).inside())
    return tree


def renamed(root: Path = RECIPES) -> dict[str, str]:
    """Returns the goals that replace recipes of earlier versions, by their old names."""
    path = root / RENAMED
    if not path.is_file():
        return {}
    return {name: str(goal) for name, goal in read_yaml(path).values.items()}


def _no_recipe(name: str, bare: str, files: dict[str, Path], root: Path) -> UserError:
    """Returns the error for a name that is no run: renamed, a goal of make, of an unknown variant, or misspelt."""
    if bare in renamed(root):
        return UserError(f"'{name}' is called otherwise now: make {renamed(root)[bare]}")
    for odd, line in _scanned(root)[1].items():
        if name == odd or name.startswith(f"{odd}-") or odd.startswith(f"{name}-"):
            return UserError(f"no recipe is called '{name}': {line}")
    target = _GOAL.fullmatch(name)
    if target and target[1] in files:
        return UserError(f"'{name}' is a goal of make, not a recipe; give '{target[1]}' here")
    alike = [each for each in files if each.split("-")[0] == bare.split("-", maxsplit=1)[0]]
    longest = max((each for each in files if bare.startswith(f"{each}-")), key=len, default=None)
    if longest is not None:
        known = variants_of(files[longest])
        rest = bare[len(longest) + 1 :]
        if known:
            return UserError(
                f"no recipe is called '{name}', and {longest} has no variant '{rest}'{nearest(rest, known)}; it has: "
                f"{', '.join(known)}; `variants:` in {shown(files[longest])} or its base names them"
            )
    tables = [f"{TABLE}{path.stem}" for path in root.glob("tables/*.yaml")]
    close = nearest(re.sub(r"-(iter|seed)\d+$|-report$", "", bare), tables if bare.startswith("table") else files)
    return UserError(
        f"no recipe is called '{name}'{close}; in {shown(root)} there are: "
        f"{', '.join(alike or list(files)[:8]) or 'none'}; recipes/<model>/<method>.yaml is <model>-<method>, and make list "
        "shows all"
    )


def paper_row(file: Path) -> str:
    """Returns which row of which paper a recipe's own file says that it is, or nothing."""
    return str(read_yaml(file).values.get("paper") or "")
