"""CPU seconds and peak memory of encoding preference pairs, as scoring and then training do it.

`python -m tests.policies.encoding_cost --pairs 16000 --processes 2`.

Pairs are made of random words in the lengths of UltraFeedback (prompts of about 150 words, completions of about 220). In each
stage the first of the processes encodes what the token store lacks. Prints a row per stage and process.

What it took before texts were encoded once, with the code of commit f3710cd (a checkout of it in BEFORE), on the same pairs and
tokenizer:

    python -m tests.policies.encoding_cost --pairs 16000 --write FOLDER
    PYTHONPATH=BEFORE/src python tests/policies/encoding_cost_before.py FOLDER --processes 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from handbook_ext.core.records import PreferencePair, assistant, user
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.token_store import TokenStore
from tests.policies.families import tokenizer_of


def words_of() -> list[str]:
    """Returns made-up words, by a fixed seed."""
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9))) for _ in range(5000)]


def pairs_of(number: int) -> list[PreferencePair]:
    """Returns pairs of random words, by a fixed seed, with an explored sample each."""
    draw = random.Random(1)
    words = words_of()

    def text(mean: int) -> str:
        return " ".join(draw.choices(words, k=max(3, round(draw.expovariate(1 / mean)))))

    return [
        PreferencePair.of(f"p{index}", user(text(150)), assistant(text(220)), assistant(text(220)), assistant(text(220)))
        for index in range(number)
    ]


def measure(pairs: int, folder: Path, waits: Any, rank: int, rows: Any) -> None:
    """Encodes in this process, the first before the others; reports its CPU seconds, and the memory (MiB) that encoding added."""
    tokenizer, made = tokenizer_of("smollm2", [" ".join(words_of())], 8000), pairs_of(pairs)
    if rank:
        waits.wait()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    encoder = ChatEncoder(tokenizer, 1024, 512, truncation="as_needed", store=TokenStore(folder, tokenizer))
    encoded = encode_pairs(made, encoder, explore=True)
    seconds, after = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF)
    if not rank:
        waits.set()
    rows.put((rank, len(encoded.rows), seconds, (after.ru_maxrss - before.ru_maxrss) / 1024))


def main() -> None:
    """Measures two stages, one after the other, each with its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write", type=Path, help="write tokenizer and pairs into a folder, and measure nothing")
    args = parser.parse_args()
    if args.write is not None:
        tokenizer_of("smollm2", [" ".join(words_of())], 8000).save_pretrained(args.write)
        rows = [json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.explore]) for pair in pairs_of(args.pairs)]
        (args.write / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
        return
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("score", "train"):
            waits, rows = context.Event(), context.Queue()
            children = [
                context.Process(target=measure, args=(args.pairs, Path(folder), waits, rank, rows))
                for rank in range(args.processes)
            ]
            for child in children:
                child.start()
            found = sorted(rows.get() for _ in children)
            for child in children:
                child.join()
            for rank, count, seconds, memory in found:
                print(f"{stage}, process {rank}: {count} pairs, {seconds:.1f} s of CPU, {memory:.0f} MiB more at the peak")


if __name__ == "__main__":
    main()
