"""YAML that is odd: read right, or refused in one line with file and line, in little time whatever it says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import recipe_files, unusable_files
from handbook_ext.recipes.overrides import inline, parse_set
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.yaml_tree import parsed_value, read_yaml
from tests.recipe_folder import enter_folder, mine

SOON = 5.0  # Seconds.
LISTS = "x0: &x0 [a, a]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9))
MAPPINGS = "x0: &x0 {a: 1}\n" + "".join(
    f"x{i}: &x{i} {{{', '.join(f'k{j}: *x{i - 1}' for j in range(10))}}}\n" for i in range(1, 9)
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize(("text", "said"), [
    ("train: {<<: {beta: 0.1}}\n", ":2: has a merge key (<<); recipes have none: write the settings, or name a `base:`"),
    ("data: &d {portions: 1}\ntrain: {<<: *d}\n", ":3: has a merge key (<<)"),
    ("train: {=: 1}\n", ":2: train has no setting '='"),
    ("train: " + "[" * 3000 + "]" * 3000 + "\n", ":2: is not valid YAML (nested more than 16 deep)"),
    ("train: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n", ":2: is not valid YAML (nested more than 16 deep)"),
    ("train:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 300)), "nested more than 16 deep"),
    ("seed: " + "9" * 5000 + "\n", ":2: a number of 5000 digits is more than any setting takes"),
    ("seed: 0x" + "f" * 5000 + "\n", ":2: a number of 5002 digits is more than any setting takes"),
    ("train: {beta: -" + "9" * 30 + "}\n", ":2: a number of 31 digits is more than any setting takes"),
    ("seed: 0" + "7" * 5000 + "\n", ":2: seed: '0777"),
    ("seed: 1" + ":59" * 3000 + "\n", ":2: seed: '1:59"),
    ("seed: 12:30\n", ":2: seed: '12:30' is not a whole number"),
    ("iterations: {iter99999999999: {}}\n", ":2: iterations: 'iter99999999999' is not iter0, iter1, ... up to iter999"),
    ("iterations: {iter1000: {}}\n", "up to iter999"),
    ("iterations: {iter\u0661: {}}\n", "'iter\u0661' is not iter0, iter1, ..."),
    (LISTS, ":2: has more than 20,000 values with its aliases written out"),
    (MAPPINGS, ":2: has more than 20,000 values with its aliases written out"),
    ("train:\n\tbeta: 0.1\n", ":3: is not valid YAML (found character '\\t'"),
    ("null: 1\n", ":2: a name of a section or setting must be a word"),
    ("true: 1\n", ":2: a name of a section or setting must be a word"),
    ("1.5: 1\n", ":2: a name of a section or setting must be a word"),
    ("? [a]\n: 1\n", ":2: a name of a section or setting must be a word"),
    ("seed: !!python/object/apply:os.system ['touch x']\n", ":2: has a YAML tag"),
    ("train: !!python/object:os.x {a: 1}\n", ":2: has a YAML tag"),
    ("train: !foo {beta: 0.1}\n", ":2: has a YAML tag (!foo); recipes use none"),
    ("evaluate: {temperatures: !foo [0.0]}\n", ":2: has a YAML tag (!foo)"),
    ("train: !!set {beta}\n", ":2: has a YAML tag"),
    ("--- {}\n--- {}\n", "is not valid YAML (but found another document)"),
    ("train: *nothing\n", ":2: is not valid YAML (found undefined alias 'nothing')"),
    ("#" * 300_000, "has 300,024 bytes, and a recipe at most 250,000; data belong in files of their own"),
    ("launch: " + "x" * 100_000 + "\n", ":2: launch: 'xxx"),
    ("train: {report_to: [wandbb]}\n", ":2: train.report_to[0]: 'wandbb' is not one of: azure_ml, "),
    ("train: {report_to: [wandbb]}\n", "(did you mean 'wandb'?)"),
])  # fmt: skip
def test_odd_yaml_is_refused_in_one_line_soon(text: str, said: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(UserError) as caught:
        mine(text)
    assert time.perf_counter() - begun < SOON
    assert str(caught.value).startswith("recipes/mine/selm.yaml")
    assert said in str(caught.value)
    assert not Path("x").exists()


@pytest.mark.parametrize(("text", "title"), [
    ("=", "="), ("<<", "<<"), ("2020-01-01", "2020-01-01"), ("12:30:45", "12:30:45"), ("010", "010"), ("0b11", "0b11"),
    ("'1e5'", "1e5"), ('"a\\nb"', "a\nb"), ('"a\\x85b"', "a\x85b"), ("é 😀", "é 😀"), ("&x y", "y"),
])  # fmt: skip
def test_text_that_looks_like_something_else_stays_text(text: str, title: str) -> None:
    assert mine(f"report: {{title: {text}}}\n").settings.report.title == title


def test_an_alias_says_what_its_anchor_holds() -> None:
    run = mine("data: {train_rows: &rows 64, sft_rows: *rows}\n")
    assert (run.settings.data.train_rows, run.settings.data.sft_rows) == (64, 64)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_recipe() -> None:
    Path("recipes/mine/selm.yaml").write_bytes("\ufeffbase: ../tiny/base.yaml\r\nseed: 3\r\n".encode())
    assert resolve("mine-selm").settings.seed == 3


def test_a_large_recipe_is_read_in_little_time() -> None:
    lines = "".join(f"  k{place}: {{temperature: 0.1}}\n" for place in range(4000))
    begun = time.perf_counter()
    with pytest.raises(UserError, match="generate has no setting 'k0'"):
        mine(f"generate:\n{lines}")
    assert time.perf_counter() - begun < SOON


@pytest.mark.parametrize("make", ["folder", "pipe", "dangling"])
def test_what_is_no_file_is_no_recipe_and_hangs_nothing(make: str) -> None:
    path = Path("recipes/mine/odd.yaml")
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "dangling": lambda: path.symlink_to("nowhere")}[make]()
    assert "mine-odd" not in recipe_files()
    assert unusable_files() == ["'recipes/mine/odd.yaml' is no file, as a recipe is; rename the file"]
    with pytest.raises(UserError, match=r"no recipe is called 'mine-odd': 'recipes/mine/odd.yaml' is no file"):
        resolve("mine-odd")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(path)


@pytest.mark.parametrize("base", ["../nowhere.yaml", "/etc/passwd", "/", "..", ".", "", "odd\0.yaml", "x" * 5000, "~/x.yaml"])
def test_a_base_that_is_no_recipe_is_told(base: str) -> None:
    with pytest.raises(UserError) as caught:
        mine(f"base: {inline(base)}\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["iter1", "seed3", "report", "plan", "why", "eval", "push", "seeds", "explain"])
def test_a_variant_called_like_a_goal_or_a_seed_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"selm.yaml:2: variants.{name} is called like a goal or a seed"):
        mine(f"variants: {{{name}: {{seed: 1}}}}\n")


@pytest.mark.parametrize("value", ["1e5", "5e-7", ".5", "0x10", "1_000", "yes", "null", "~", "12:30", ".inf", "=", "<<", "010"])
def test_an_override_written_as_text_is_read_back_as_text(value: str) -> None:
    assert parsed_value(inline(value), "SET") == value


@pytest.mark.parametrize(
    "text", ["[" * 3000, "9" * 5000, "!!python/name:os.system", "<<", "{<<: {a: 1}}", "=", "*y", "&y [*y]", "0x_", "a: " * 500]
)
def test_a_value_of_set_is_a_value_or_one_line(text: str) -> None:
    try:
        parse_set(f"report.title={text}".replace(" ", "\\ "))
    except UserError as error:
        assert str(error).startswith("SET")
