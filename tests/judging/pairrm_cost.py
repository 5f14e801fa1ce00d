"""Prompts per second of PairRM, llm-blender's and ours in turns: `python -m tests.judging.pairrm_cost --pairs train.jsonl`.

The network is a small DeBERTa-v2 of random weights with a vocabulary learnt on the texts; prompts and answers are those of a file
of preference pairs. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from handbook_ext.core.records import user
from handbook_ext.judging.llm_blender_pairrm import LlmBlenderRanker
from handbook_ext.judging.pairrm import PairRM
from handbook_ext.judging.ranker import CandidateSet, Verdict
from tests.judging.small_pairrm import save_pairrm

SOURCE_MAX, CANDIDATE_MAX = 1224, 412  # The original's.
LAYERS, HIDDEN, VOCABULARY = 4, 256, 4000
BUCKETS = 256  # DeBERTa v3's, and its heads are of 64 as well.
Judge = Callable[[list[CandidateSet]], list[list[Verdict]]]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="JSONL with prompt, chosen and rejected")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=3, help="answers per prompt of the first table")
    parser.add_argument("--many", type=int, default=8, help="answers per prompt of the tournament")
    parser.add_argument("--repeats", type=int, default=3, help="times that each row is measured, in turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in arguments.pairs.read_text(encoding="utf-8").splitlines()[: 4 * arguments.prompts]]
    texts = [(text_of(row["prompt"]), text_of(row["chosen"]), text_of(row["rejected"])) for row in rows]
    with tempfile.TemporaryDirectory() as name:
        corpus = [text for row in texts for text in row]
        folder = save_pairrm(
            Path(name),
            corpus,
            layers=LAYERS,
            hidden=HIDDEN,
            vocab_size=VOCABULARY,
            lengths=(SOURCE_MAX, CANDIDATE_MAX),
            spread=0.05,
            buckets=BUCKETS,
        )
        few = candidate_sets(texts, arguments.prompts, arguments.candidates)
        measure_full(folder, few, arguments.repeats)
        measure_bf16(folder, few[:8], arguments.repeats)
        measure_tournament(folder, candidate_sets(texts, max(8, arguments.prompts // 4), arguments.many), arguments.repeats)


def text_of(value: Any) -> str:
    """Returns the last message's text of a conversation, or a text as it is."""
    return value if isinstance(value, str) else str(value[-1]["content"])


def candidate_sets(texts: list[tuple[str, str, str]], prompts: int, candidates: int) -> list[CandidateSet]:
    """Returns prompts with their own two answers and those of the prompts behind them."""
    answers = [answer for _, *both in texts for answer in both]
    return [
        CandidateSet(user(prompt), [answers[(2 * number + each) % len(answers)] for each in range(candidates)])
        for number, (prompt, _, _) in enumerate(texts[:prompts])
    ]


def ours(folder: Path, **more: Any) -> Judge:
    """Returns our PairRM."""
    options = {"source_max_length": SOURCE_MAX, "candidate_max_length": CANDIDATE_MAX, **more}
    return PairRM(str(folder), device=torch.device("cpu"), **options).judge


def unsorted(folder: Path) -> Judge:
    """Returns our PairRM on one set after the other: without batches of like length over all sets."""
    judge = ours(folder)
    return lambda sets: [judge([each])[0] for each in sets]


def theirs(folder: Path, batch_size: int) -> Judge:
    """Returns llm-blender's."""
    lengths = {"source_max_length": SOURCE_MAX, "candidate_max_length": CANDIDATE_MAX}
    return LlmBlenderRanker(str(folder), device=torch.device("cpu"), batch_size=batch_size, **lengths).judge


def measure_full(folder: Path, sets: list[CandidateSet], repeats: int) -> None:
    """Prints the table of all comparisons."""
    judges: dict[str, Judge] = {
        "llm-blender, batches of 8 prompts (its default)": theirs(folder, 8), "llm-blender, prompt by prompt": theirs(folder, 1),
        "ours, fp32, prompt by prompt": unsorted(folder), "ours, fp32, batches of like length": ours(folder),
    }  # fmt: skip
    measure(judges, sets, repeats, "llm-blender, prompt by prompt")


def measure_bf16(folder: Path, sets: list[CandidateSet], repeats: int) -> None:
    """Prints the table of bf16, which a CPU without such arithmetic is slow at."""
    measure({"ours, fp32": ours(folder), "ours, bf16": ours(folder, bf16=True)}, sets, repeats, "ours, fp32")


def measure(judges: dict[str, Judge], sets: list[CandidateSet], repeats: int, exact: str) -> None:
    """Prints a table: the speed of each, and how far its scores are from those of `exact`."""
    seconds, verdicts = interleaved(judges, sets, repeats)
    reference = [each.score for row in verdicts[exact] for each in row]
    print(f"\n{len(sets)} prompts with {len(sets[0].texts)} answers, medians of {repeats} in turns, one thread\n")
    print(f"| what | prompts/s | against {exact} | largest difference of a score | prompts with other ranks |")
    print("|---|---|---|---|---|")
    for name, took in seconds.items():
        found = [each.score for row in verdicts[name] for each in row]
        gap = max(abs(a - b) for a, b in zip(found, reference, strict=True))
        size = len(sets[0].texts)
        other = sum(
            order(found[place : place + size]) != order(reference[place : place + size]) for place in range(0, len(found), size)
        )
        print(f"| {name} | {len(sets) / took:.3f} | {seconds[exact] / took:.2f} | {gap:.2g} | {other} |", flush=True)


def measure_tournament(folder: Path, sets: list[CandidateSet], repeats: int) -> None:
    """Prints the table of the tournament, and in how many prompts a circle of wins changes its outcome."""
    judges = {
        "llm-blender, prompt by prompt": theirs(folder, 1), "ours, all comparisons": ours(folder),
        "ours, tournament": ours(folder, tournament=True),
    }  # fmt: skip
    seconds, verdicts = interleaved(judges, sets, repeats)
    print(f"\n{len(sets)} prompts with {len(sets[0].texts)} answers\n\n| what | prompts/s | against llm-blender |\n|---|---|---|")
    for name, took in seconds.items():
        print(f"| {name} | {len(sets) / took:.3f} | {seconds['llm-blender, prompt by prompt'] / took:.2f} |")
    ends = [
        [(places[-1], places[0]) for row in verdicts[name] for places in [order([each.score for each in row])]]
        for name in ("ours, all comparisons", "ours, tournament")
    ]
    judge = judges["ours, all comparisons"]
    for end, name, sign in ((0, "best", 1), (1, "worst", -1)):
        others = [number for number, (full, short) in enumerate(zip(*ends, strict=True)) if full[end] != short[end]]
        clear = [(number, found) for number in others if (found := beats_all(judge, sets[number], sign)) is not None]
        right = sum(ends[1][number][end] == found for number, found in clear)
        print(
            f"\nThe tournament's {name} is another in {len(others)} of {len(sets)} prompts: in {len(others) - len(clear)} "
            f"there is a circle, and none {'wins' if sign > 0 else 'loses'} all its comparisons; in {len(clear)} one does, which "
            f"the tournament names in {right}, while the sum of leads names another."
        )


def beats_all(judge: Judge, one: CandidateSet, sign: int) -> int | None:
    """Returns which candidate wins (sign 1) or loses (-1) all its comparisons, None where a circle leaves none."""
    places = range(len(one.texts))
    pairs = [(a, b) for a in places for b in places if a < b]
    found = judge([CandidateSet(one.prompt, [one.texts[a], one.texts[b]]) for a, b in pairs])
    won = {(a, b): sign * (first.score - second.score) > 0 for (a, b), (first, second) in zip(pairs, found, strict=True)}
    return next((a for a in places if all(won[min(a, b), max(a, b)] == (a < b) for b in places if b != a)), None)


def order(scores: list[float]) -> list[int]:
    """Returns the places of scores, the lowest first."""
    return sorted(range(len(scores)), key=lambda place: scores[place])


def interleaved(
    judges: dict[str, Judge], sets: list[CandidateSet], repeats: int
) -> tuple[dict[str, float], dict[str, list[list[Verdict]]]]:
    """Returns the median seconds and the verdicts of each judge, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in judges}
    verdicts = {}
    for _ in range(repeats):
        for name, judge in judges.items():
            started = time.perf_counter()
            verdicts[name] = judge(sets)
            seconds[name].append(time.perf_counter() - started)
    return {name: median(each) for name, each in seconds.items()}, verdicts


if __name__ == "__main__":
    main()
