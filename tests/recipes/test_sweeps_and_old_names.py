"""Rows of the papers' sweeps change what their axis says and nothing else; an old name is answered with the new one."""

from __future__ import annotations

import shlex

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.recipes.names import recipe_files, renamed
from handbook_ext.recipes.overrides import from_mapping
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.recipes.table_files import TableRow, read_table, run_of_row, table_names
from tests.recipe_folder import ROOT
from tests.recipes.delivered import course, difference, run_of

SWEEPS = ("selm-alpha", "selm-ablations", "sera-keep", "sera-selection", "sera-bootstrap", "sera-gamma")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def runs_of(table: str) -> dict[str, tuple[TableRow, Run]]:
    """The rows of a table by name, with the run of each."""
    return {row.name: (row, run_of_row(row, table, 1)) for row in read_table(table).rows}


def axis(table: str) -> list[tuple[float, Run]]:
    """The points of a sweep's axis."""
    return [(row.x, run) for row, run in runs_of(table).values() if row.x is not None]


def test_alpha_is_swept_over_selm_with_plain_dpo_first() -> None:
    for x, run in axis("selm-alpha"):
        assert course(run, "train.alpha") == [0, x, x, x]
        assert {each for each in difference(run, run_of("tiny-selm")) if each != "explore"} <= {"train.alpha"}


def test_k_is_swept_with_and_without_own_pairs() -> None:
    """SeRA figure 5: K + K~ = N along the solid line of a, K~ = 0 along the dotted one, K = 0.7 N in b."""
    own_pairs = {"sera-keep": lambda x: (x, 1 - x), "sera-selection": lambda x: (x, 0), "sera-bootstrap": lambda x: (0.7, x)}
    for table, expected in own_pairs.items():
        for x, run in axis(table):
            last = run.iterations[-1].settings.select
            assert (last.keep, last.bootstrap) == pytest.approx(expected(x))
            select = {each for each in difference(run, run_of("tiny-sera")) if each.startswith(("select.", "train.", "data."))}
            assert select <= {"select.keep", "select.bootstrap"}


def test_gamma_is_the_weight_of_the_policy_before() -> None:
    for x, run in axis("sera-gamma"):
        assert run.iterations[-1].settings.select.gamma == x
        assert {each for each in difference(run, run_of("tiny-sera")) if each.startswith("select.")} <= {"select.gamma"}


def test_the_grid_of_selm_figure_6_changes_iterative_dpo_in_one_thing() -> None:
    rows = {name: run for name, (_, run) in runs_of("selm-ablations").items()}
    for count in (3, 4, 5, 6):
        run = rows[f"{count} iterations"]
        assert (len(run.iterations), run.settings.data.portions, run.iterations[0].name) == (count, count, "iter0")
        assert course(run, "train.rate") == [2e-4] * (count - 1) + [1e-4]
    for size in (16, 32, 64):
        assert course(rows[f"batch {size}"], "train.global_batch_size") == [size] * 4
    assert course(rows["constant rate"], "train.rate") == [2e-4] * 4
    assert course(rows["linearly decayed rate"], "train.rate") == [2e-4, 1.67e-4, 1.33e-4, 1e-4]
    assert course(rows["rate decayed at last"], "train.rate") == [2e-4, 2e-4, 2e-4, 1e-4]
    for name, rule in (("rank all three", "best_and_worst"), ("against chosen", "against_chosen")):
        assert course(rows[name], "select.rule") == ["dataset", rule, rule, rule]
        assert course(rows[name], "generate.num_completions") == [1] * 4
    assert [each.starts_from for each in rows["stepwise DPO"].iterations] == ["sft", "iter0", "iter1", "iter2"]
    assert not any(each.needs.samples for name in ("stepwise DPO", "offline DPO") for each in rows[name].iterations)
    assert (len(rows["offline DPO"].iterations), rows["offline DPO"].settings.data.portions) == (1, 1)
    rates = {"learning_rate", "learning_rate_factor"}
    for name in ("constant rate", "linearly decayed rate", "batch 16", "batch 64"):
        changed = {each.split(".")[-1] for each in difference(rows[name], run_of("tiny-dpo"))}
        assert changed <= (rates if "rate" in name else {"global_batch_size"}), name


@pytest.mark.parametrize("table", table_names(ROOT / "recipes"))
def test_a_row_sets_only_what_its_recipe_says_otherwise(table: str) -> None:
    for row, run in runs_of(table).values():
        for name, value in row.set.items():
            rest = from_mapping({each: row.set[each] for each in row.set if each != name}, "test")
            try:
                without = resolve(row.recipe, overrides=rest)
            except UserError:
                continue  # The rest alone is no recipe, so this is needed.
            assert difference(run, without), f"{row.name}: {name}: {value} changes nothing"


@pytest.mark.parametrize(("old", "goal"), renamed(ROOT / "recipes").items())
def test_an_old_name_is_answered_with_the_goal_that_replaces_it(old: str, goal: str) -> None:
    for name in (old, f"{old}-seed3"):
        with pytest.raises(UserError) as caught:
            resolve(name)
        assert str(caught.value) == f"'{name}' is called otherwise now: make {goal}"
    assert old not in recipe_files()
    words = shlex.split(goal)
    variables = dict(word.split("=", 1) for word in words if word.startswith("SET="))
    [run] = plan_goals(words[:1], variables, list(variables)).runs.values()
    model, *rest = old.split("-")
    if model != "sweeps":
        assert sorted(words[0].replace("offline-", "").split("-")) == sorted([model, *rest])
    else:
        assert words[0].startswith("tiny-")
        assert run.iterations


def test_what_replaces_a_sweep_is_the_run_of_a_table() -> None:
    """So that a try of a single point finds what the table has made, and the other way round."""
    replaced = {
        run_of(*(word.removeprefix("SET=") for word in shlex.split(goal))).name
        for old, goal in renamed().items()
        if old.startswith("sweeps-")
    }
    in_tables = {run.name for table in SWEEPS for _, run in runs_of(table).values()}
    assert replaced - in_tables == {"tiny-sera+select.margin_reference-start"}
    assert in_tables <= replaced
