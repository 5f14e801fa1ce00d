"""Finished runs of two arms -> whether the tables' verdicts tell a planted difference, and leave equal runs alone.

`measure_planted.py --better runs/a-seed1 runs/a-seed3 ... --worse runs/b-seed2 ...`: the first arm is better by construction,
and no seed is in both. `make planted` makes the runs, then calls this. Writes OUT/planted.json, planted.md and rewards.npz, the
rewards prompt by prompt; exits with 1 where a requirement is not met.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.jsonl import replace_text, write_json
from handbook_ext.core.provenance import code_state, hardware, package_versions
from handbook_ext.recipes.settings_stages import ReportSettings
from handbook_ext.reports.planted import CONFUSED, TOLD, Design, missed, page_of, resampled, summary_of
from handbook_ext.reports.planted_runs import Arm, check_apart, command_of, in_words, prompt_rewards, read_arm

SEEDS, PROMPTS = 5, 300  # Of a side of a real table.


def main(argv: list[str]) -> None:
    """Reads the runs, draws the tables, writes what they said and prints it."""
    arguments = parsed(argv)
    better, worse = read_arm("better", arguments.better), read_arm("worse", arguments.worse)
    check_apart(better, worse)
    design = design_of(arguments, better, worse)
    with tqdm(total=design.tables, desc="tables", unit="table") as progress:
        counts = resampled(better.measured, worse.measured, better.decoding, design, progress.update)
    summary = summary_of(counts, design.confidence)
    # Fewer seeds or prompts than a real table has are a try, of which nothing is required.
    whole = design.seeds >= SEEDS and design.prompts >= PROMPTS
    wrong = missed(summary) if whole else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out / "rewards.npz", **prompt_rewards(better), **prompt_rewards(worse))  # type: ignore[arg-type]
    facts = {"machine": hardware(), "versions": package_versions(), "code": code_state(), "decoding": better.decoding}
    required = {"told": TOLD, "confused": CONFUSED, "held": whole, "missed": wrong}
    rows = [*better.rows, *worse.rows]
    numbers = {"design": dataclasses.asdict(design), "required": required, "summary": summary, "rows": rows}
    write_json(arguments.out / "planted.json", facts | numbers, indent=1)
    about = [f"`{command_of(better, worse)}`", *(f"- {in_words(arm)}" for arm in (better, worse))]
    text = page_of(about, summary, design, wrong if whole else None)
    replace_text(arguments.out / "planted.md", text)
    print(f"{text}\nwritten: {arguments.out / 'planted.md'}, planted.json, rewards.npz")
    if wrong:
        sys.stderr.write(f"error: {'; '.join(wrong)}\n")
        sys.exit(1)


def parsed(argv: list[str]) -> argparse.Namespace:
    """Returns the arguments; a UserError for a number out of range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for arm, about in (("better", "the recipe that is better by construction"), ("worse", "the other recipe")):
        parser.add_argument(f"--{arm}", nargs="+", type=Path, required=True, metavar="RUN", help=f"run folders of {about}")
    parser.add_argument("--tables", type=int, default=1000, help="how many tables are drawn for each question (default 1000)")
    parser.add_argument("--draw", type=int, default=0, metavar="SEED", help="seed of the draws (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/planted"), metavar="DIR", help="folder of what is written")
    arguments = parser.parse_args(argv)
    if arguments.tables < 1:
        raise UserError(f"--tables is {arguments.tables}; at least 1 is needed")
    return arguments


def design_of(arguments: argparse.Namespace, better: Arm, worse: Arm) -> Design:
    """Returns the tables to be drawn: of a real one's size, or as large as the runs allow; UserError where they allow none."""
    seeds = min(SEEDS, *(len(arm.rows) // 2 for arm in (better, worse)))
    if seeds < 2:
        raise UserError("an arm has fewer than four seeds, of which no two groups of two can be drawn; make at least SEEDS=4")
    prompts = min(PROMPTS, *(row["prompts"] for arm in (better, worse) for row in arm.rows))
    report = ReportSettings()
    return Design(arguments.tables, seeds, prompts, arguments.draw, report.bootstrap_resamples, report.confidence)


if __name__ == "__main__":
    run_main(main)
