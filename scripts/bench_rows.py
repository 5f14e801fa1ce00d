"""Processor seconds and peak memory of what a loop does with rows around its policies, on made-up rows of chat-like length.

Each step runs in a process of its own, for each number of rows. Writes OUT/rows.json.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.jsonl import read_rows, write_json, write_rows
from handbook_ext.core.provenance import code_state, hardware, package_versions
from handbook_ext.core.records import Candidate, OfflinePair, Ranking, assistant, user
from handbook_ext.data.offline import load_offline_data
from handbook_ext.objectives.metrics import hierarchical_interval
from handbook_ext.recipes.settings import DataSettings
from handbook_ext.recipes.settings_stages import SelectSettings
from handbook_ext.selection.log_prob_store import read_stores, store_row
from handbook_ext.selection.rules import Material, select_pairs

ROWS = (4_000, 16_000, 61_000)
ORIGINS = (("on_policy", 0), ("on_policy", 1), ("offline", None), ("offline", None))
LETTERS = {"prompt": (450, 1.1), "completion": (850, 0.8)}  # Median and spread of log-normal lengths, as chat data have.


def texts(kind: str, count: int, seed: int) -> Iterator[str]:
    """Yields texts of log-normal length, cut from random words."""
    rng, (median, spread) = random.Random(f"{kind} {seed}"), LETTERS[kind]
    words = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(1, 9))) for _ in range(20_000)]
    text = " ".join(words)
    for _ in range(count):
        size, start = round(min(rng.lognormvariate(math.log(median), spread), 8_000)), rng.randrange(len(text) // 2)
        yield text[start : start + max(size, 9)].strip()


def prepare(folder: Path, count: int) -> None:
    """Writes the files that the steps read: raw data, the run's rows, rankings of two samples, and log-probs."""
    answers = [texts("completion", count, seed) for seed in range(4)]
    raw, pairs, rankings, scores = [], [], [], []
    for number, (prompt, good, bad, *samples) in enumerate(zip(texts("prompt", count, 0), *answers, strict=True)):
        labels = {"score_chosen": 8.5, "score_rejected": float(number % 7)}
        place = {"raw_row": number, "raw_rows": count}
        row = OfflinePair.of(f"p{number}", user(prompt), assistant(good), assistant(bad), **labels, **place)
        pairs.append(row)
        sides = {"chosen": row.prompt + row.chosen, "rejected": row.prompt + row.rejected}
        raw.append({"prompt": prompt, "prompt_id": row.prompt_id} | sides | labels)
        origins = (("on_policy", 0), ("on_policy", 1), ("offline", None), ("offline", None))
        candidates = [
            Candidate(
                origin=origin, sample=sample, text=text, completion_id=f"{number}-{rank}", score=1 / (number + rank), rank=rank
            )
            for rank, (text, (origin, sample)) in enumerate(zip((*samples, good, bad), origins, strict=True), 1)
        ]
        rankings.append(Ranking(prompt_id=row.prompt_id, prompt=row.prompt, candidates=candidates, ties=0))
        scores += [store_row("policy", name, -100 / (number + 3), 181) for name in (row.chosen_id, row.rejected_id)]
    write_rows(folder / "raw.jsonl", raw)
    pq.write_table(pa.Table.from_pylist(raw), folder / "raw.parquet")
    write_rows(folder / "held_out.jsonl", raw[:1])
    write_rows(folder / "rows.jsonl", pairs)
    write_rows(folder / "rankings.jsonl", rankings)
    (folder / "logprobs").mkdir()
    write_rows(folder / "logprobs/shard.jsonl", scores)


def load(folder: Path, name: str) -> Callable[[], object]:
    """Returns the reading of raw data as the stage `data` does it."""
    return partial(load_offline_data, DataSettings(train=str(folder / name), test=str(folder / "held_out.jsonl")), seed=1)


def select(folder: Path) -> Callable[[], object]:
    """Returns the selection of pairs, its rows read before."""
    material = Material(read_rows(folder / "rows.jsonl", OfflinePair), rankings=read_rows(folder / "rankings.jsonl", Ranking))
    return partial(select_pairs, material, SelectSettings(rule="best_and_worst", explore=True))


def interval(folder: Path) -> Callable[[], object]:
    """Returns the bootstrap interval of a mean over as many prompts as there are rows, a report's default resamples."""
    with (folder / "rows.jsonl").open() as rows:
        rewards = np.random.default_rng(0).normal(size=sum(1 for _ in rows))
    return partial(hierarchical_interval, [rewards])


STEPS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "data from JSONL": partial(load, name="raw.jsonl"),
    "data from Parquet": partial(load, name="raw.parquet"),
    "write pairs": lambda folder: partial(write_rows, folder / "again.jsonl", read_rows(folder / "rows.jsonl", OfflinePair)),
    "read pairs": lambda folder: partial(read_rows, folder / "rows.jsonl", OfflinePair),
    "read rankings": lambda folder: partial(read_rows, folder / "rankings.jsonl", Ranking),
    "read log-probs": lambda folder: partial(read_stores, [folder / "logprobs"]),
    "select": select,
    "bootstrap": interval,
}  # fmt: skip


def measured(step: str, folder: Path) -> tuple[float, float]:
    """Returns the processor seconds of a step and the growth of its process's peak memory (MiB)."""
    work = STEPS[step](folder)
    before, start = psutil.Process().memory_info().rss / 2**20, time.process_time()
    work()
    return time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def main(argv: list[str]) -> None:
    """Measures every step at every number of rows, writes rows.json and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=ROWS, metavar="N", help="numbers of rows (default 4000 16000 61000)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder of rows.json")
    arguments = parser.parse_args(argv)
    if min(arguments.rows) < 1:
        raise UserError(f"--rows is {min(arguments.rows)}; at least 1 is needed")
    found: dict[str, dict[int, tuple[float, float]]] = {step: {} for step in STEPS}
    fresh = multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1)  # Libraries are loaded, and no step has run.
    with fresh, tqdm(total=len(STEPS) * len(arguments.rows), desc="benchmark", unit="step") as progress:
        for rows in arguments.rows:
            with tempfile.TemporaryDirectory() as folder:
                fresh.apply(prepare, (Path(folder), rows))
                for step in STEPS:
                    found[step][rows] = fresh.apply(measured, (step, Path(folder)))
                    progress.update()
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = {"machine": hardware(), "versions": package_versions(), "code": code_state()}
    write_json(arguments.out / "rows.json", machine | {"steps": found})
    table = Table("step: CPU s, peak MiB", *(f"{rows:,} rows" for rows in arguments.rows))
    for step, numbers in found.items():
        table.add_row(step, *(f"{seconds:.2f}, {peak:.0f}" for seconds, peak in numbers.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    run_main(main)
