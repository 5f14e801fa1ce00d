"""A figure of a paper from finished runs: `paper_figure.py selm4 --model tiny --runs runs`; without a name, which there are."""

import argparse
import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.recipes.table_files import SMALLEST
from handbook_ext.reports.figure_sources import Sources
from handbook_ext.reports.paper_figures import listing, render_paper_figure


def main(argv: list[str]) -> None:
    """Draws what is there, and says in one line what is not; runs nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", nargs="?", help="a figure of the papers, such as selm4 or sera6b")
    parser.add_argument("--model", nargs="+", default=[SMALLEST], help="whose runs; several where a figure compares models")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds to look for; 1 is the recipe's own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--out", type=Path, help="folder of the pictures; by default figures/ among the runs")
    arguments = parser.parse_args(argv)
    if arguments.figure is None:
        sys.stdout.write(listing())
        return
    # What a variable of make says comes as one argument.
    models = [name for words in arguments.model for name in words.split()]
    for what, given in (("--seeds", arguments.seeds), ("--model", models)):
        if len(set(given)) < len(given):
            raise UserError(f"{what} {' '.join(map(str, given))}: one is named twice; name each once")
    sources = Sources(arguments.runs, models, arguments.seeds)
    files = render_paper_figure(arguments.figure, sources)
    out = arguments.out or arguments.runs / "figures"
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    if sources.missing:
        sys.stderr.write(f"{arguments.figure}: not drawn for want of {sources.told()}\n")
    print(f"figure: {' '.join(str(out / name) for name in files)}")


if __name__ == "__main__":
    run_main(main)
