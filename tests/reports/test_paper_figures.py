"""Figures as files: each in all its forms, and what is missing is told with the goal that makes it."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.goals import plan_goals
from handbook_ext.recipes.table_files import table_names
from handbook_ext.reports.figure_parts import to_csv
from handbook_ext.reports.figure_rows import rows_of_model
from handbook_ext.reports.paper_figures import FIGURES, listing, render_paper_figure
from tests.recipe_folder import ROOT, enter_folder
from tests.reports.figure_world import evaluation, sources, table_of

WITH_PAPERS_NUMBERS = {"selm2", "sera4"}
OF_PAPERS = {"selm": ["2", "3", "4", "5", "6"], "sera": ["2", "3", "4", "5a", "5b", "6a", "6b", "6c", "6d", "11"]}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes and tables are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def test_there_is_a_figure_for_each_of_the_papers_that_runs_can_give() -> None:
    assert list(FIGURES) == [f"{paper}{number}" for paper, numbers in OF_PAPERS.items() for number in numbers]
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == list(FIGURES)
    assert all("  needs " in line for line in lines)
    named = {word.strip(",") for line in lines for word in line.split("  needs ")[1].split() if "-" in word and "/" not in word}
    assert named <= {*table_names(), "SeRA-DPO"}


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in WITH_PAPERS_NUMBERS])
def test_without_runs_a_figure_says_in_a_line_which_goals_make_them(name: str, tmp_path: Path) -> None:
    found = sources(tmp_path)
    with pytest.raises(UserError, match=rf"^{name}: there is nothing to draw; missing: ") as caught:
        render_paper_figure(name, found)
    assert "\n" not in str(caught.value)
    goals = [goal for goal in found.missing if goal.startswith("make ")]
    assert goals and all(goal.removeprefix("make ") in str(caught.value) for goal in goals)
    # Each is a goal that make knows, whose run is in the folder that was looked for.
    for goal in goals[:3]:
        words = shlex.split(goal)[1:]
        [run] = plan_goals(words[:1], dict(word.split("=", 1) for word in words[1:])).runs.values()
        assert found.missing[goal] == [str(tmp_path / run.name)]


@pytest.mark.parametrize("name", sorted(WITH_PAPERS_NUMBERS))
def test_without_runs_the_papers_numbers_stand_alone(name: str, tmp_path: Path) -> None:
    picture = FIGURES[name].build(sources(tmp_path))
    lines = table_of(to_csv(picture))
    assert {line["whose"] for line in lines if line["y"] != "not run"} == {"paper"}
    assert any(line["whose"] == "ours" and line["y"] == "not run" for line in lines)
    # A model without rows in the tables: the paper's numbers are drawn all the same, and the lack is told.
    found = sources(tmp_path, "mine")
    assert not FIGURES[name].build(found).panels[-1].empty or name == "sera4"
    assert "rows of mine in recipes/tables/" in found.told()


def test_what_a_run_lacks_is_told_by_file_and_plain_goals_together(tmp_path: Path) -> None:
    for name in ("tiny-selm", "tiny-dpo"):
        evaluation(tmp_path / name / "sft", [1] * 4)
    evaluation(tmp_path / "tiny-selm-seed2/iter1", [1] * 4)
    found = sources(tmp_path, seeds=(1, 2))
    FIGURES["selm4"].build(found)
    (first, second, seeded, *_) = found.missing.items()
    assert first == ("make tiny-selm", [f"{tmp_path}/tiny-selm/iter1/eval.json"])
    assert second[0] == "make tiny-selm-seed2, with evaluate.implicit_reward: true"
    assert seeded == ("make tiny-dpo", [f"{tmp_path}/tiny-dpo/iter1/eval.json"])
    assert found.told().startswith(
        f"{tmp_path}/tiny-selm/iter1/eval.json, {tmp_path}/tiny-dpo/iter1/eval.json (make tiny-selm tiny-dpo); implicit rewards "
    )


def test_a_goal_with_quotes_in_it_is_typed_with_the_other_kind(tmp_path: Path) -> None:
    [row] = [row for row in sources(tmp_path).rows("selm-alpha") if row.name == "alpha 0.5"]
    assert (row.goal(), row.goal(3)) == ('make tiny-selm SET="train.alpha=0.5"', 'make tiny-selm-seed3 SET="train.alpha=0.5"')
    assert rows_of_model("selm1", "tiny")[0].name == "SFT"


def test_a_model_has_the_rows_that_are_made_for_it_or_that_it_has_recipes_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {row.recipe for row in rows_of_model("selm1", "zephyr")} == {"zephyr-selm", "zephyr-dpo"}
    assert [row.recipe for row in rows_of_model("sera-models", "tinyllama")] == ["tinyllama-sera", "pythia-sera", "mistral-sera"]
    assert rows_of_model("sera-gamma", "zephyr") == rows_of_model("selm1", "mine") == []
    folder = enter_folder(tmp_path, monkeypatch)
    shutil.copytree(ROOT / "recipes/tables", folder / "recipes/tables")
    for method in ("selm", "dpo"):
        Path(f"recipes/mine/{method}.yaml").write_text(f"base: ../tiny/{method}.yaml\n")
    assert {row.recipe for row in rows_of_model("selm1", "mine")} == {"mine-selm", "mine-dpo"}


def test_the_script_writes_all_forms_and_says_what_it_could_not_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "paper_figure.py"))["main"]
    held_out = {"sample": [(2.0, 1, 2), (5.0, 1, 2)]}
    for name in ("tiny-selm", "tiny-dpo"):
        evaluation(tmp_path / name / "iter2", [1] * 2, held_out=held_out)
    main(["selm5", "--runs", str(tmp_path), "--seeds", "1"])
    names = {f"selm5-tiny{end}" for end in (".png", "-dark.png", ".svg", ".csv", ".md")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    said = capsys.readouterr()
    assert (said.err, str(tmp_path / "figures/selm5-tiny.png") in said.out) == ("", True)
    page = (tmp_path / "figures/selm5-tiny.md").read_text()
    assert page.startswith("# SELM figure 5: ") and "Seeds: 1." in page and "selm5-tiny-dark.png" in page
    assert [line["y"] for line in table_of((tmp_path / "figures/selm5-tiny.csv").read_text())][:2] == ["0", "0"]

    content = json.loads((tmp_path / "tiny-dpo/iter2/eval.json").read_text())
    (tmp_path / "tiny-dpo-seed2").mkdir()
    (tmp_path / "tiny-dpo/iter2/eval.json").write_text(json.dumps(content | {"seed": 1}))
    main(["selm5", "--runs", str(tmp_path), "--seeds", "1", "2", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert said.err == f"selm5: not drawn for want of {tmp_path}/tiny-dpo-seed2/iter2/eval.json (make tiny-dpo-seed2)\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_the_script_lists_figures_and_refuses_what_it_cannot_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "scripts" / "paper_figure.py"))["main"]
    main([])
    assert capsys.readouterr().out == listing()
    with pytest.raises(UserError, match=r"no figure is called 'selm22' \(did you mean 'selm2'\?\); there are: selm2, "):
        main(["selm22", "--runs", str(tmp_path)])
    with pytest.raises(UserError, match="--seeds 1 1: one is named twice"):
        main(["selm2", "--seeds", "1", "1"])
    with pytest.raises(UserError, match="--model tiny pythia tiny: one is named twice"):
        main(["selm2", "--model", "tiny pythia", "tiny"])
