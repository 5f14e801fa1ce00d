"""Goals that tune: the trials that a table's methods need, what is left out, and what make is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from tests.recipe_folder import ROOT, enter_folder
from tests.recipes.choices import choose

TABLE = """
title: t
source: s
models: [tiny]
rows:
  - {name: SFT, method: selm, policy: start}
  - {name: DPO, method: dpo}
  - {name: SELM, method: selm}
  - {name: "SELM, first", method: selm, policy: iter1}
  - {name: other alpha, method: selm, set: {train.alpha: 0.1}}
"""
RULE = {"seeds": [51, 52], "budget": 2, "grid": {"train.learning_rate": [3e-4, 6e-4], "train.beta": [0.7, 1.4]}}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder with recipes, a table and a rule the current one."""
    enter_folder(tmp_path, monkeypatch)
    for name, text in (("tables/mine", TABLE), ("tuning/tiny", yaml.safe_dump(RULE))):
        Path(f"recipes/{name}.yaml").parent.mkdir()
        Path(f"recipes/{name}.yaml").write_text(text)


def test_a_recipe_of_several_rows_is_tuned_once_and_the_start_is_not() -> None:
    plan = plan_goals(["tune-mine-trials"], {})
    wanted = plan.wanted["tune-mine-trials"]
    assert len(wanted) == 2 * 2 * 2, "two recipes, two trials, two seeds"
    assert {artifact for _, artifact in wanted} == {"iter3/eval.json"}
    assert {name.partition("+")[0] for name, _ in wanted} == {"tiny-dpo", "tiny-selm"}
    assert {name.rpartition("-seed")[2] for name, _ in wanted} == {"51", "52"}
    # Trials share what they have in common, as rows of a table do.
    assert "tune-mine-trials: export HANDBOOK_SHARE := 1" in plan.lines


def test_trials_are_of_the_recipe_without_what_was_chosen_before() -> None:
    choose("tiny-selm", {"train.alpha": 0.3})
    for run in plan_goals(["tune-mine-trials"], {}).runs.values():
        assert run.tuned is None and run.settings.train.alpha != 0.3


def test_the_choice_follows_whatever_became_of_the_trials_and_variables_are_handed_on() -> None:
    plan = plan_goals(["tune-mine"], {"RUNS": "elsewhere", "JOBS": "1", "MODEL": "tiny"}, ["MODEL", "JOBS"])
    commands = [line.strip() for line in plan.lines if line.startswith("\t")]
    trials, choice = commands
    assert trials == "+-@$(MAKE) --no-print-directory --keep-going tune-mine-trials RUNS=elsewhere MODEL=tiny JOBS=1"
    assert choice == "@$(PYTHON) scripts/choose_settings.py mine --runs elsewhere --model tiny"
    assert not plan.runs, "the trials are planned by the make that makes them"
    assert not any("-j" in line for line in plan.lines), "two makes would both start jobs"


def test_a_trial_that_failed_is_not_made_again_until_its_recipe_changes() -> None:
    def left() -> int:
        return len(plan_goals(["tune-mine-trials"], {}).runs)

    chosen = {"train.learning_rate": 3e-4, "train.beta": 0.7}
    axes = {key: [value, 2 * value] for key, value in chosen.items()}
    Path("recipes/tuning/tiny.yaml").write_text(yaml.safe_dump({**RULE, "grid": axes}, sort_keys=False))
    before = left()
    points = [run.overrides for run in plan_goals(["tune-mine-trials"], {}).runs.values() if run.recipe.startswith("tiny-selm")]
    tried = dict(each.split("=") for each in points[0])
    failed = {name: float(value) for name, value in tried.items()}
    kept = next({name: float(v) for name, v in (e.split("=") for e in each)} for each in points if each != points[0])
    choose("tiny-selm", kept, axes=axes, trials=[
        {"set": failed, "reward": None, "seeds": [{"seed": 51, "failed": "has diverged"}, {"seed": 52, "reward": 0.1}]},
        {"set": kept, "reward": 0.5, "seeds": [{"seed": 51, "reward": 0.5}, {"seed": 52, "reward": 0.5}]},
    ])  # fmt: skip
    assert left() == before - 1
    recipe = Path("recipes/tiny/selm.yaml")
    recipe.write_text(recipe.read_text().replace("max_new_tokens: 48", "max_new_tokens: 47"))
    assert left() == before


def test_an_axis_that_an_iteration_states_itself_is_refused() -> None:
    Path("recipes/tiny/dpo.yaml").write_text(
        "base: base.yaml\niterations:\n" + "".join(f"  iter{n}: {{train: {{beta: 0.2}}}}\n" for n in range(4))
    )
    Path("recipes/tuning/tiny.yaml").write_text(yaml.safe_dump(RULE | {"budget": 4}))
    with pytest.raises(UserError, match=r"tiny-dpo: the trials .* are the same run, since its iterations state what is tried"):
        plan_goals(["tune-mine"], {})


@pytest.mark.parametrize(("goals", "variables", "words"), [
    (["tune-nothing"], {}, "no table is called 'nothing'"),
    (["tune-mine"], {"MODEL": "zephyr"}, "it has no rows for zephyr|no recipe is called 'zephyr-dpo'"),
    (["tune-mine"], {"SEEDS": "3"}, "SEEDS is read by .* and no goal here is one of these: tune-mine"),
    (["tune-mine"], {"SET": "train.beta=1"}, "SET is read by"),
    (["tune-mine"], {"CLUSTER": "slurm"}, "CLUSTER"),
])  # fmt: skip
def test_a_goal_that_cannot_be_tuned_is_one_line(goals: list[str], variables: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        plan_goals(goals, variables, list(variables))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_rule_is_told_where_to_write_one() -> None:
    Path("recipes/tuning/tiny.yaml").unlink()
    with pytest.raises(UserError, match=r"recipes/tuning/tiny\.yaml: is not there, and says what to try for tiny-dpo"):
        plan_goals(["tune-mine"], {})


def test_the_delivered_tables_can_be_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    counts = {name: len(plan_goals([f"tune-{name}-trials"], {}).runs) for name in ("selm1", "sera-noise40")}
    assert counts == {"selm1": 2 * 6 * 2, "sera-noise40": 8 * 4}
