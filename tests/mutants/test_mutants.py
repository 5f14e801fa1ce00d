"""The driver of mutation testing, on a planted package: what it changes, what kills a mutant, and what it reports."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from handbook_ext.graph.goals import check_variables
from tests.mutants import __main__ as driver
from tests.mutants import forks
from tests.mutants.mutations import Candidates, Mutant, mutant_of, sample
from tests.mutants.report import Outcome, faults, read_outcomes, write_report

SOURCE = """
def total(count, price):
    if count < 0:
        raise ValueError("a count is not negative")
    return count * price

def countdown(start):
    while start > 0:
        start -= 1
    return start
"""
SHOP = """
from pathlib import Path

Numbers = dict[str, int]

class Shop:
    name: str = "corner"

    @property
    def prices(self) -> Numbers:
        if not self.name:
            raise ValueError("a shop has a name")
        return dict(zip(("tea",), (2,), strict=True))
"""
TEST = """
from planted.shop import countdown, total

def test_total():
    assert total(2, 3) == 6

def test_countdown():
    assert countdown(3) == 0
"""
BETTER = """
def test_refusal():
    import pytest
    assert total(0, 3) == 0
    with pytest.raises(ValueError, match="not negative"):
        total(-1, 3)
    assert countdown(1) == 0
"""


def changes(targets: dict[str, tuple[str, ...]], root: Path, seed: int = 1) -> list[Mutant]:
    return list(sample(root, targets, seed))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one module, its tests, and the driver's files."""
    for name in ("src/planted", "tests", "driver"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src/planted/__init__.py").touch()
    (tmp_path / "src/planted/shop.py").write_text(SOURCE)
    (tmp_path / "tests/test_shop.py").write_text(TEST)
    (tmp_path / "driver/targets.yaml").write_text("[{files: [shop.py], tests: [test_shop.py]}]")
    for name in ("named", "equivalent"):
        (tmp_path / f"driver/{name}.yaml").write_text("[]")
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    monkeypatch.setattr(driver, "PACKAGE", tmp_path / "src" / "planted")
    monkeypatch.setattr(driver, "HERE", tmp_path / "driver")
    monkeypatch.setattr(driver, "SLACK_SECONDS", 1)
    monkeypatch.setattr(driver, "SLACK", 1)
    monkeypatch.setattr(forks, "preload", lambda source: monkeypatch.syspath_prepend(str(source)))
    return tmp_path


@pytest.fixture
def run(project: Path) -> Callable[..., int]:
    """Returns a function that runs the driver with arguments."""
    return lambda *args: driver.main([*args, "--out", str(project / "runs"), "--processes", "2"])


def test_mutants_are_distinct_seeded_and_named_by_their_function(project: Path) -> None:
    root = project / "src" / "planted"
    found = changes({"shop.py": ()}, root)
    assert {one.function for one in found} == {"total", "countdown"}
    assert len({one.key for one in found}) == len(found)
    assert ("total", "return count * price", "return count / price") in {one.key[1:] for one in found}
    assert found == changes({"shop.py": ()}, root)
    again = changes({"shop.py": ()}, root, seed=2)
    assert found != again and {one.key for one in found} == {one.key for one in again}
    assert {one.function for one in changes({"shop.py": ("total",)}, root)} == {"total"}


def test_each_mutant_is_sound_and_means_something_else(project: Path) -> None:
    for one in changes({"shop.py": ()}, project / "src" / "planted"):
        assert ast.dump(ast.parse(one.source)) != ast.dump(ast.parse(SOURCE))
        assert one.diff.splitlines()[0] == f"shop.py, {one.function}"


def test_prose_types_and_guards_are_left_alone() -> None:
    module = Candidates("shop.py", SHOP)
    found = [one for number in range(len(module.found)) if (one := module.mutant(number)) is not None]
    changed = {one.after for one in found}
    assert not [after for after in changed if "XXa shop" in after or "strict=False" in after or "Numbers = None" in after]
    assert not [after for after in changed if after.startswith(("from", "@"))]
    assert {"return dict(zip(None, (2,), strict=True))", "raise ValueError(None)"} <= changed
    assert {one.function for one in found} == {"Shop", "Shop.prices"}


def test_what_the_tests_see_is_killed_and_what_they_do_not_see_survives(
    project: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """An endless loop is killed by its time limit; the file on the disk stays as it was; a better test kills the survivors."""
    assert run("--size", "500") == 1
    outcomes = {one.mutant.key[1:]: one for one in read_outcomes(project / "runs" / "report.json")}
    states = {key: one.state for key, one in outcomes.items()}
    assert states["total", "return count * price", "return count / price"] == "killed"
    assert states["total", 'raise ValueError("a count is not negative")', "raise ValueError(None)"] == "survived"
    assert states["countdown", "start -= 1", "start += 1"] == "timeout"
    assert (project / "src/planted/shop.py").read_text() == SOURCE
    printed = capsys.readouterr().out
    assert "- raise ValueError" in printed
    (project / "tests/test_shop.py").write_text(TEST + BETTER)
    assert run("--size", "500", "--only", "survivors") == 0
    assert "enough are killed" in capsys.readouterr().out
    rerun = read_outcomes(project / "runs" / "report.json")
    assert len(rerun) == len(outcomes)
    assert sum(one.state == "survived" for one in rerun) < list(states.values()).count("survived")


def test_a_run_that_was_cut_short_goes_on_with_what_is_missing(
    project: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--size", "6", "--minutes", "0") == 1
    assert "6 of 6 mutants were not run; ONLY=missing runs them" in capsys.readouterr().out
    for only in ("missing", "survivors", "selection/sera.py"):  # What is told to type is what make takes.
        check_variables({"ONLY": only}, ["ONLY"], {"mutants": "project"})
    run("--size", "3")
    first = read_outcomes(project / "runs" / "report.json")
    run("--size", "6", "--only", "missing")
    outcomes = read_outcomes(project / "runs" / "report.json")
    assert len(first) == 3 and len(outcomes) == 6
    assert all(one in outcomes for one in first)


def test_named_mutants_must_be_killed_and_equivalent_ones_must_not(
    project: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "driver/targets.yaml").write_text("[{files: [shop.py], functions: [total], tests: [test_shop.py]}]")
    row = {"name": "no refusal", "file": "shop.py", "before": "if count < 0:", "after": "if count < -9:"}
    (project / "driver/named.yaml").write_text(json.dumps([row]))
    refusal = 'raise ValueError("a count is not negative")'
    entries = [(refusal, "raise ValueError(None)"), ("return count * price", "return count / price")]
    (project / "driver/equivalent.yaml").write_text(json.dumps([
        {"file": "shop.py", "function": "total", "before": before, "after": after, "reason": "r"} for before, after in entries
    ]))  # fmt: skip
    assert run("--size", "500") == 1
    printed = capsys.readouterr().out
    assert "the named mutant 'no refusal' survives" in printed
    assert "killed, though in equivalent.yaml: 'return count / price'" in printed
    assert "## Equivalent" in (project / "runs" / "report.md").read_text()


@pytest.mark.parametrize(
    ("file", "row", "words"),
    [
        ("named", {"name": "n", "before": "gone", "after": "x"}, "`before` stands 0 times in shop.py, not once"),
        ("equivalent", {"function": "f", "before": "gone", "after": "x", "reason": "r"}, "no longer holds 'gone'"),
    ],
)
def test_entries_that_the_source_has_left_behind_are_refused(
    project: Path, run: Callable[..., int], file: str, row: dict[str, str], words: str
) -> None:
    (project / f"driver/{file}.yaml").write_text(json.dumps([row | {"file": "shop.py"}]))
    with pytest.raises(SystemExit, match=words):
        run()


def test_the_delivered_entries_fit_the_source() -> None:
    """Each target, its functions and its tests are there, and so is each line that a named or equivalent mutant changes."""
    tests = {name for row in [*driver._rows("targets"), *driver._rows("named")] for name in row.get("tests", ())}
    assert {name for name in tests if not (driver.ROOT / "tests" / name).exists()} == set()
    for row in driver._rows("targets"):
        for file in row["files"]:
            module = Candidates(file, (driver.PACKAGE / file).read_text())
            defined = {node.name for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert set(row.get("functions", ())) <= defined
            assert module.found
    targets = {file: driver.Target(frozenset(), ()) for row in driver._rows("targets") for file in row["files"]}
    assert len(list(driver._named(targets))) == len(driver._rows("named")) > 10
    assert len(driver._reasons()) == len(driver._rows("equivalent"))


def test_tests_that_fail_without_a_mutant_give_no_result(project: Path, run: Callable[..., int]) -> None:
    (project / "tests/test_shop.py").write_text("def test_nothing():\n    assert False\n")
    with pytest.raises(SystemExit, match="exit status 1 without any mutant"):
        run()


def test_a_run_fails_below_the_share_of_killed_and_above_that_of_equivalent(tmp_path: Path) -> None:
    def outcomes(**counts: int) -> list[Outcome]:
        kinds = [state for state, count in counts.items() for _ in range(count)]
        return [
            Outcome(mutant_of("a.py", "x = 1\n", f"x = {number + 2}\n"), "", state, 0.5, "r" if state == "equivalent" else "")
            for number, state in enumerate(kinds)
        ]

    assert faults(outcomes(killed=85, timeout=5, survived=7, equivalent=3)) == []
    assert faults(outcomes(killed=89, survived=11)) == ["89.0 % are killed, at least 90 % must be"]
    assert faults(outcomes(killed=96, equivalent=4)) == ["4.0 % are declared equivalent, at most 3 % may be"]
    made = outcomes(killed=2, timeout=1, survived=1)
    table = write_report(tmp_path, made, {"seed": 1})
    assert "| a.py | 4 | 2 | 1 | 1 | 0 | 75.0 % |" in table
    assert sorted(read_outcomes(tmp_path / "report.json"), key=lambda one: one.mutant.after) == made
    assert json.loads((tmp_path / "report.json").read_text())["killed"] == 0.75
