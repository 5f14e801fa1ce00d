"""Finished runs beside each other, in one page: `compare_runs.py runs/tiny-selm runs/tiny-dpo --out runs/compare/selm-dpo`.

In which settings they differ, the same rows for all, paired tests of their last policies on the same prompts. Folders that
end with -seed<K> are seeds of one run.
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.stage import Stage
from handbook_ext.core.stage_settings import read_settings_as
from handbook_ext.graph.stages import ReportStage
from handbook_ext.graph.stages_benchmarks import CompareStage
from handbook_ext.reports.compare import read_compared, summarise_compared
from handbook_ext.reports.compare_sets import summarise_sets
from handbook_ext.reports.pages import render_comparison

PIPED = 200  # Columns of what is read by another program.


def main(argv: list[str]) -> None:
    """Reads the runs, writes the page, prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, two or more")
    parser.add_argument("--of", default="", metavar="NAMES", help="instead: names of runs, parted by blanks, as make has them")
    parser.add_argument("--runs", type=Path, dest="folder", default=Path("runs"), help="the folder of the runs that --of names")
    parser.add_argument("--out", type=Path, help="folder of the page; by default compare/<names> beside the first run")
    arguments = parser.parse_args(argv)
    arguments.runs += [arguments.folder / name for name in arguments.of.split()]
    if not arguments.runs:
        raise UserError('name the runs to be compared, such as OF="tiny-selm tiny-dpo"')
    if missing := [str(run) for run in arguments.runs if not (run / ReportStage.file).is_file()]:
        which = "is no folder of a run" if len(missing) == 1 else "are no folders of runs"
        raise UserError(f"{', '.join(missing)} {which}; make each first, such as make {Path(missing[0]).name}")
    if len({run.resolve() for run in arguments.runs}) < max(2, len(arguments.runs)):
        named = " ".join(run.name for run in arguments.runs)
        raise UserError(
            f'OF: two or more runs are compared, each named once, and here it names {named}; such as OF="tiny-selm tiny-dpo"'
        )
    out = arguments.out or arguments.runs[0].parent / "compare" / "-".join(run.name for run in arguments.runs)
    report = read_settings_as(ReportStage, arguments.runs[0] / ReportStage.file)[0].report
    # Of the loop and of prompt sets; whatever else a run has is in their manifests.
    evaluations = sorted(path for run in arguments.runs for depth in ("*", "*/*") for path in run.glob(f"{depth}/eval.json"))
    inputs = [os.path.relpath(path, out.parent) for path in evaluations if manifest_path(path).is_file()]
    runs = [os.path.relpath(run, out.parent) for run in arguments.runs]
    stage = Stage(out, CompareStage(stage="compare", inputs={"evaluations": inputs}, runs=runs, report=report))
    if not stage.finished():
        compared = read_compared(arguments.runs)
        bootstrap = {"resamples": report.bootstrap_resamples, "confidence": report.confidence}
        summary = summarise_compared(compared, **bootstrap) | {"sets": summarise_sets(compared, **bootstrap)}
        stage.out.mkdir(exist_ok=True)
        for name, content in render_comparison(compared, summary).items():
            (stage.out / name).write_bytes(content)
        stage.publish({"in": len(runs), "out": len(runs)})
    text = (stage.artifact / "compare.md").read_text(encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else PIPED)
    console.print(Markdown(text.split("\n![")[0]))  # A terminal shows no pictures.
    print(f"comparison: {stage.artifact / 'compare.html'}")


if __name__ == "__main__":
    run_main(main)
