"""Names that several rooms share are spelt in one place, from which the others take them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A text, where it is spelt, and files in which the same word means something else.
ONCE = [
    # Values of select.margin_reference, a key of the report's numbers, and one of training's manifest.
    ("start", "core/artifacts.py", {"recipes/settings.py", "recipes/settings_stages.py", "selection/ensemble.py",
                                    "reports/run_report.py", "reports/trained_steps.py", "reports/ledger_checks.py"}),
    ("table-", "recipes/names.py", set()),
    ("data/rows", "graph/rule.py", set()),
    # One of the formats is read in a way of its own.
    (".parquet", "recipes/settings_run.py", {"data/files.py"}),
    # A stage's workspace, a merged and a kept policy are no files, and Arrow's files are no text.
    (".partial", "core/jsonl.py", {"core/stage.py", "policies/token_store.py", "sampling/vllm_engine.py", "training/kept.py"}),
    # How YAML ends a value on one line.
    ("...\n", "recipes/overrides.py", set()),
]  # fmt: skip


@cache
def texts() -> dict[str, set[str]]:
    """The texts in the code of each module and script, without docstrings; of an f-string its fixed parts."""
    found = {}
    for path in [*(ROOT / "src/handbook_ext").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        name = str(path.relative_to(ROOT)).removeprefix("src/handbook_ext/")
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        said = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in said]
        found[name] = {node.value for node in constants if isinstance(node.value, str)}
    return found


@pytest.mark.parametrize(("text", "place", "others"), ONCE)
def test_a_name_is_spelt_in_one_place(text: str, place: str, others: set[str]) -> None:
    assert {name for name, said in texts().items() if text in said} - others == {place}
