"""What trials came to: the best mean over seeds is chosen, what diverged is the least, what is unfinished chooses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.table_files import read_table
from handbook_ext.recipes.table_rows import TableRow
from handbook_ext.recipes.trials import Method, methods_of
from handbook_ext.reports.tuning_choices import lines_of, write_choice
from handbook_ext.reports.tuning_results import outcome_of
from handbook_ext.reports.tuning_words import tuning_lines, words_of_row
from tests.manifests import BARE
from tests.recipe_folder import enter_folder
from tests.recipes.choices import choose

RUNS, ROOT = Path("runs"), Path("recipes")
RULE = {"seeds": [51, 52], "budget": 2, "grid": {"train.beta": [0.7, 1.4]}}
ABOUT = {"date": "2025-01-01", "command": "make tune-mine"}


@pytest.fixture(name="method")
def _method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """The one method of a table with two trials on two seeds, in a folder of its own."""
    enter_folder(tmp_path, monkeypatch)
    table = "title: t\nsource: s\nrows: [{name: A, recipe: tiny-selm}]\n"
    for name, text in (("tables/mine", table), ("tuning/tiny", yaml.safe_dump(RULE))):
        Path(f"recipes/{name}.yaml").parent.mkdir()
        Path(f"recipes/{name}.yaml").write_text(text)
    (method,) = methods_of(read_table("mine"))
    return method


def evaluated(method: Method, trial: int, seed: int, reward: float, prompts: str = "ab", judge: str = "oracle") -> Path:
    """Writes the evaluation of a trial's seed, whose two prompts have the reward on average; returns its run's folder."""
    run = method.trials[trial].runs[seed]
    file = RUNS / run.name / "iter3/eval.json"
    file.parent.mkdir(parents=True)
    rows = [
        {"prompt_id": name, "reward": reward + shift, "tokens": 10 + shift}
        for name, shift in zip(prompts, (-0.1, 0.1), strict=True)
    ]
    greedy = [row | {"reward": 1.0} for row in rows]
    decodings = {"greedy": {"temperature": 0.0, "rows": greedy}, "sampled": {"temperature": 0.7, "rows": rows}}
    file.write_text(json.dumps({"seed": run.settings.seed, "ranker": judge, "judge": judge, "decodings": decodings}))
    facts = {"packages": {"torch": "2.13"}, "hardware": {"cpu": "EPYC", "cores": 2}}
    file.with_name("eval.manifest.json").write_text(json.dumps(BARE | facts))
    return RUNS / run.name


def attempted(method: Method, trial: int, seed: int, *errors: str) -> None:
    """Writes the log of training that has ended so at each attempt."""
    log = RUNS / method.trials[trial].runs[seed].name / "iter2/train.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"--- 2025-01-01 scripts/train_policy.py\nsteps\n{error}\nit has failed\n" for error in errors))


def test_the_trial_of_the_greatest_mean_of_sampled_rewards_is_chosen_and_lies_over_the_recipe(method: Method) -> None:
    for trial, rewards in enumerate([(0.9, 0.1), (0.4, 0.7)]):
        for seed, reward in enumerate(rewards):
            evaluated(method, trial, seed, reward)
    outcome = outcome_of(method, RUNS, ROOT)
    assert [each.reward for each in outcome.trials] == [0.5, 0.55]
    assert [(each.seed, each.reward, each.tokens) for each in outcome.trials[1].seeds] == [(51, 0.4, 10.0), (52, 0.7, 10.0)]
    assert write_choice(outcome, RUNS, **ABOUT)
    run = resolve("tiny-selm")
    assert run.settings.train.beta == 1.4 and run.tuned is not None and not run.tuned.changed
    written = run.tuned.choices
    assert written.judged == "mean true reward, sampled, of 2 held-out prompts of each seed, at iter3"
    assert written.packages["torch"] == "2.13"
    assert written.machines == ["EPYC, 2 cores"] and written.command == "make tune-mine"
    # A repeat on another day writes nothing.
    before = method.file.read_bytes()
    assert write_choice(outcome, RUNS, **{**ABOUT, "date": "2026-01-01"})
    assert method.file.read_bytes() == before


def test_a_trial_of_which_a_seed_diverged_counts_as_the_least_and_is_recorded(method: Method) -> None:
    evaluated(method, 1, 0, 0.9)
    attempted(method, 1, 1, "error: full", f"error: {RUNS / method.trials[1].runs[1].name}/iter2: training has diverged: NaN")
    for seed in (0, 1):
        evaluated(method, 0, seed, -0.15)
    outcome = outcome_of(method, RUNS, ROOT)
    assert write_choice(outcome, RUNS, **ABOUT)
    tuned = resolve("tiny-selm").tuned
    assert tuned is not None and tuned.choices.chosen == {"train.beta": 0.7}
    failed = tuned.choices.trials[1]
    assert failed.reward is None and failed.seeds[0].reward == 0.9
    assert str(failed.seeds[1].failed).startswith("iter2: training has diverged"), "no folder of this machine"
    assert lines_of(outcome)[2].split()[:3] == ["failed", "(0.900,", "failed)"]
    # Once recorded, its folder is not needed.
    Path(RUNS / method.trials[1].runs[1].name / "iter2/train.log").unlink()
    assert outcome_of(method, RUNS, ROOT).trials == outcome.trials


@pytest.mark.parametrize("errors", [
    (), ("error: runs/x: the disk is full; free some space",),
    ("error: runs/x: training has diverged: NaN", "error: runs/x: the disk is full"),
])  # fmt: skip
def test_what_is_not_finished_chooses_nothing(method: Method, errors: tuple[str, ...]) -> None:
    for trial, seed in ((0, 0), (0, 1), (1, 0)):
        evaluated(method, trial, seed, 0.5)
    attempted(method, 1, 1, *errors)
    outcome = outcome_of(method, RUNS, ROOT)
    assert [path.name for path in outcome.unfinished] == [method.trials[1].runs[1].name]
    assert lines_of(outcome) == ["tiny-selm: 1 of 4 runs are not finished"]
    assert not write_choice(outcome, RUNS, **ABOUT)
    assert not method.file.exists()


def test_where_every_trial_failed_nothing_is_chosen(method: Method) -> None:
    for trial in (0, 1):
        evaluated(method, trial, 0, 0.5)
        attempted(method, trial, 1, "error: runs/x: the run stops here: KL 80 is above 50")
    outcome = outcome_of(method, RUNS, ROOT)
    assert [each.reward for each in outcome.trials] == [None, None]
    assert not write_choice(outcome, RUNS, **ABOUT) and not method.file.exists()


@pytest.mark.parametrize("other", [{"prompts": "ac"}, {"judge": "reward_model"}])
def test_trials_that_were_not_evaluated_alike_are_refused(method: Method, other: dict[str, str]) -> None:
    for trial, seed in ((0, 0), (0, 1), (1, 0)):
        evaluated(method, trial, seed, 0.5)
    evaluated(method, 1, 1, 0.9, **other)
    with pytest.raises(UserError, match="seed 52: its trials have not the same judge, prompts and decodings"):
        outcome_of(method, RUNS, ROOT)


def test_a_table_says_what_its_rows_were_tuned_over_and_where_that_was_uneven(method: Method) -> None:
    rows = [TableRow(name="SFT", recipe="tiny-selm", policy="start"), TableRow(name="SELM", recipe="tiny-selm"),
            TableRow(name="DPO", recipe="tiny-dpo"),
            TableRow(name="other", recipe="tiny-selm", set={"train.beta": 0.3})]  # fmt: skip

    def lines() -> list[str]:
        return tuning_lines([(row, resolve(row.recipe)) for row in rows])

    assert lines() == ["No method was tuned: every row has the values of its recipe."]
    chosen = {"train.beta": 0.7}
    choose("tiny-selm", chosen)
    assert words_of_row(rows[0], resolve("tiny-selm")) == "-"
    assert lines()[:4] == [
        "SELM: tuned over 2 trials: beta, on seeds 51, 52.",
        "DPO: values of the recipe, not tuned.",
        "other: tuned over 2 trials: beta, on seeds 51, 52, then train.beta as the row has it.",
        "The comparison is uneven: DPO had no trial, and others had.",
    ]
    choose("tiny-dpo", chosen, seeds=[51])
    assert "The comparison is uneven: the methods had not the same number of trials and seeds." in lines()
    assert any(line.startswith("tiny-dpo: the recipe has changed since it was tuned (what is tried)") for line in lines())
    choose("tiny-dpo", chosen)
    assert not any("uneven" in line or "changed" in line for line in lines())
    assert lines()[-1].startswith("Chosen by the mean true reward, sampled.")
