"""Writes the report of a recipe: one run, or several seeds of it, with other recipes beside.

python scripts/write_report.py runs/tiny-selm
python scripts/write_report.py runs/tiny-selm runs/tiny-selm-seed2 --beside runs/tiny-dpo --out runs/seeds/report
"""

import argparse
import base64
import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.core.errors import run_main
from handbook_ext.core.stage import Stage
from handbook_ext.objectives.metrics import word_verdict
from handbook_ext.recipes.settings import ReportSettings
from handbook_ext.recipes.writing import load_stage
from handbook_ext.reports.run_figures import draw_curves, draw_means, draw_rewards
from handbook_ext.reports.run_report import Run, read_run, summarise


def open_stage(given: argparse.Namespace) -> Stage:
    """The report's stage: its settings are the first run's, its inputs every evaluation and policy it shows."""
    settings = load_stage(given.runs[0] / "report.yaml")
    settings |= {"shown": [run.name for run in given.runs], "beside": [run.name for run in given.beside]}
    if given.iterations:
        settings["iterations"] = given.iterations
    folders = [run / name for run in (*given.runs, *given.beside) for name in settings["iterations"]]
    inputs = [folder / part for folder in folders for part in ("eval.json", "policy", "pairs.jsonl")]
    return Stage(given.out or given.runs[0] / "report", settings, [path for path in inputs if manifest_path(path).is_file()])


def group_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in one list per recipe, in the order of first appearance."""
    return [[run for run in runs if run.recipe == name] for name in dict.fromkeys(run.recipe for run in runs)]


def draw(groups: Sequence[Sequence[Run]], summary: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, bytes]]:
    """Captions and PNG files of the pictures, by file name."""
    over = "seeds and prompts" if len(groups[0]) > 1 else "the prompts of one seed"
    reward, primary = summary["reward"], summary["primary"]
    pictures: dict[str, tuple[str, Figure]] = {
        "reward_and_length.png": (
            f"Mean {reward} and mean completion length of each policy; bars are intervals over {over}.",
            draw_means(dict(summary)),
        ),
        "reward_distribution.png": (
            f"How the {reward} is distributed over the prompts, {primary}, policy by policy.",
            draw_rewards(groups[0], dict(summary)),
        ),
    }
    if any(run.history for run in groups[0]):
        caption = f"Training of {groups[0][0].recipe}, iteration after iteration, a line per seed."
        pictures["training_curves.png"] = (caption, draw_curves(groups[0]))
    files = {}
    for name, (_, figure) in pictures.items():
        figure.savefig(content := io.BytesIO(), dpi=150, format="png", metadata={"Software": None})
        files[name] = content.getvalue()
    return {name: caption for name, (caption, _) in pictures.items()}, files


def render(groups: Sequence[Sequence[Run]], summary: dict[str, Any]) -> dict[str, bytes]:
    """The files of the report by name: two pages, the summary and the pictures."""
    captions, files = draw(groups, summary)
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("handbook_ext.reports"), autoescape=jinja2.select_autoescape(["html.j2"], default=False)
    )
    pages.filters["fromjson"] = json.loads
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    pages.globals |= {"verdict": word_verdict, "summary": summary, "captions": captions, "pictures": encoded}
    words: Any = pages.get_template("report.md.j2").module
    said = {"conclusions": words.conclusions(summary), "warnings": words.warnings(summary)}
    summary |= {key: [line.strip() for line in text.splitlines() if line.strip()] for key, text in said.items()}
    files["report.md"] = f"{words}\n".encode()
    files["report.html"] = pages.get_template("report.html.j2").render().encode()
    files["summary.json"] = json.dumps(summary, indent=1, default=dataclasses.asdict).encode() + b"\n"
    return files


def main(argv: list[str]) -> None:
    """Reads the runs, writes the report, prints the headline table and where the report lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders: the seeds of one recipe")
    parser.add_argument("--beside", nargs="+", type=Path, default=[], help="run folders of other recipes")
    parser.add_argument("--iterations", nargs="+", help="the iterations, in order; by default all that were evaluated")
    parser.add_argument("--out", type=Path, help="folder of the report; by default report/ in the first run")
    given = parser.parse_args(argv)
    stage = open_stage(given)
    if stage.finished():
        return
    iterations = [name for name in stage.settings["iterations"] if name not in ("sft", "start")]
    groups = [[read_run(folder, iterations) for folder in given.runs]]
    groups += group_seeds([read_run(folder, iterations) for folder in given.beside])
    report = ReportSettings(**stage.settings["report"])
    title = report.title or groups[0][0].recipe
    title += f", {len(given.runs)} seeds" if len(given.runs) > 1 else ""
    summary = summarise(groups, title=title, resamples=report.bootstrap_resamples, confidence=report.confidence)
    files = render(groups, summary)
    stage.out.mkdir(exist_ok=True)
    for name, content in files.items():
        (stage.out / name).write_bytes(content)
    shown = sum(map(len, groups))
    stage.publish({"in": shown, "out": shown})
    page = itertools.dropwhile(lambda line: not line.startswith("|"), files["report.md"].decode().splitlines())
    headline = "\n".join(itertools.takewhile(lambda line: line.startswith("|"), page))
    Console(width=None if sys.stdout.isatty() else 170).print(Markdown(headline))
    print(f"report: {stage.artifact / 'report.html'}")


if __name__ == "__main__":
    run_main(main)
