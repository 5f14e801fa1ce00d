"""What encoding took at commit f3710cd, by its own modules: encoding_cost.py says how this is run."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


def measure(folder: Path, rank: int, rows: Any) -> None:
    """Encodes all pairs in this process, as each process did in each stage; reports CPU seconds and MiB more."""
    from handbook_ext.chat import ChatEncoder  # type: ignore[import-not-found]
    from handbook_ext.encoding import encode_pairs  # type: ignore[import-not-found]
    from handbook_ext.records import PreferencePair  # type: ignore[import-not-found]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = ("prompt", "chosen", "rejected", "explore")
    rest = {"chosen_origin": "offline", "rejected_origin": "offline", "margin": None, "swapped": False}
    made = [
        PreferencePair(prompt_id=f"p{number}", **dict(zip(names, json.loads(line), strict=True)), **rest)
        for number, line in enumerate((folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    ]
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    encode_pairs(made, ChatEncoder(tokenizer, 1024, 512), explore=True)
    seconds, after = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF)
    rows.put((rank, len(made), seconds, (after.ru_maxrss - before.ru_maxrss) / 1024))


def main() -> None:
    """Measures one stage; the other cost the same again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = context.Queue()
    children = [context.Process(target=measure, args=(args.folder, rank, rows)) for rank in range(args.processes)]
    for child in children:
        child.start()
    for rank, count, seconds, memory in sorted(rows.get() for _ in children):
        print(f"one stage, process {rank}: {count} pairs, {seconds:.1f} s of CPU, {memory:.0f} MiB more at the peak")


if __name__ == "__main__":
    main()
