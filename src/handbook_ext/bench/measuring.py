"""Measuring training steps: pairs with the lengths of chat data, seconds, counted FLOPs, peak memory, agreement.

Lengths are tokens, seconds wall clock, FLOPs multiply and add counted apart, memory bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from handbook_ext.policies.packing import EncodedPair

ATEN = torch.ops.aten
# What torch 2.13's counter leaves out of a step on a CPU (attention; TRL's head adds in place), and what it equals.
UNCOUNTED = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: ATEN._scaled_dot_product_flash_attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: ATEN._scaled_dot_product_flash_attention_backward,
    ATEN.addmm_: ATEN.addmm,
}
SAMPLING_INTERVAL = 0.002


@dataclass(frozen=True)
class LengthLaw:
    """A log-normal law of lengths: median in tokens, and the standard deviation of the logarithm."""

    median: float
    spread: float

    def grid(self, count: int) -> list[int]:
        """Returns the `count` evenly spaced quantiles of the law, in tokens, ascending, each at least 2."""
        normal = NormalDist(math.log(self.median), self.spread)
        return [max(2, round(math.exp(normal.inv_cdf((i + 0.5) / count)))) for i in range(count)]


@dataclass(frozen=True)
class PairLaw:
    """Lengths of a batch's prompts and answers; a prompt's answers have log-lengths of the given correlation."""

    prompt: LengthLaw = LengthLaw(100, 0.85)
    answer: LengthLaw = LengthLaw(175, 0.8)
    correlation: float = 0.45
    max_length: int = 1024
    vocabulary: int = 512
    first_word: int = 2
    end_id: int = 1

    def draw(self, count: int, seed: int) -> list[EncodedPair]:
        """Returns pairs of random words whose lengths are the quantiles of the laws, combined by seed.

        So each seed has the same prompts and answers by length, and the tail is never missed by chance. The explored
        sample is the chosen text in one third of the pairs, the rejected in one third, a third text in one third.
        """
        rng = random.Random(seed)
        prompts = [min(length, self.max_length - 2) for length in rng.sample(self.prompt.grid(count), count)]
        shared = [rng.gauss(0, 1) for _ in range(count)]
        answers = [self._answer_lengths(shared, rng) for _ in range(3)]
        pairs = []
        for number, (prompt, *lengths) in enumerate(zip(prompts, *answers, strict=True)):
            chosen, rejected, third = (self._answer(min(n, self.max_length - prompt), rng) for n in lengths)
            explore = (chosen, rejected, third)[number % 3]
            pairs.append(EncodedPair(self._words(prompt, rng), chosen, rejected, explore))
        return pairs

    def _answer_lengths(self, shared: list[float], rng: random.Random) -> list[int]:
        """Returns the law's quantiles in an order that follows what a prompt's answers share."""
        own, common = math.sqrt(1 - self.correlation), math.sqrt(self.correlation)
        scores = [common * value + own * rng.gauss(0, 1) for value in shared]
        lengths = [0] * len(shared)
        ranked = sorted(range(len(shared)), key=scores.__getitem__)
        for length, place in zip(self.answer.grid(len(shared)), ranked, strict=True):
            lengths[place] = length
        return lengths

    def _words(self, count: int, rng: random.Random) -> list[int]:
        """Returns random token ids that are no special tokens."""
        return [rng.randrange(self.first_word, self.vocabulary) for _ in range(count)]

    def _answer(self, length: int, rng: random.Random) -> list[int]:
        """Returns an answer of that many tokens, the end token included."""
        return [*self._words(length - 1, rng), self.end_id]


def length_quantiles(pairs: Sequence[EncodedPair]) -> dict[str, dict[str, float]]:
    """Returns the 10, 25, 50, 75, 90 % quantiles, maximum and mean of prompt, answer and row lengths, in tokens."""
    lengths = {
        "prompt": [len(pair.prompt) for pair in pairs],
        "answer": [len(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)],
        "prompt and answer": [len(pair.prompt) + len(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)],
    }
    found = {}
    for name, values in lengths.items():
        ranked = sorted(values)
        found[name] = {f"{q}%": float(ranked[len(ranked) * q // 100]) for q in (10, 25, 50, 75, 90)}
        found[name] |= {"max": float(ranked[-1]), "mean": round(statistics.fmean(ranked), 1)}
    return found


def count_flops(step: Callable[[], float]) -> tuple[float, dict[str, int]]:
    """Runs a step and returns its value and the FLOPs of its matrix products: attention, other and total.

    Attention counts every query-key product that the kernel is given, masked or not.
    """
    counter = FlopCounterMode(display=False)
    counter.flop_registry.update({kind: counter.flop_registry[known] for kind, known in UNCOUNTED.items()})
    with counter:
        value = step()
    counts = counter.get_flop_counts()["Global"]
    attention = sum(flops for kind, flops in counts.items() if "attention" in str(kind))
    total = counter.get_total_flops()
    return value, {"attention": attention, "other": total - attention, "total": total}


class PeakMemory:
    """Growth of the process's resident memory (bytes) in a block of code, sampled every 2 ms by a thread.

    Free memory is handed back to the system first, so that what earlier code left behind hides nothing.
    """

    def __init__(self) -> None:
        """Starts with nothing measured."""
        self.bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        """Starts sampling."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # not glibc: the numbers leave out memory used again
            ctypes.CDLL(None).malloc_trim(0)
        process = psutil.Process()
        before = process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, args=(process, before), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends sampling."""
        self._done.set()
        self._thread.join()

    def _sample(self, process: psutil.Process, before: int) -> None:
        """Keeps the largest growth until the block ends."""
        while not self._done.wait(SAMPLING_INTERVAL):
            self.bytes = max(self.bytes, process.memory_info().rss - before)


def timed(step: Callable[[], float]) -> dict[str, float]:
    """Runs a step and returns its seconds, the processor seconds of all its threads, and the peak growth of memory in bytes.

    With one thread the processor seconds hardly depend on what else the machine does; threads that wait count as busy.
    """
    with PeakMemory() as memory:
        start, busy = time.perf_counter(), time.process_time()
        step()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {"seconds": seconds, "cpu_seconds": busy, "peak_bytes": memory.bytes}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, smallest and largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Returns a copy of every parameter's gradient by name."""
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def gradient_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Returns |ours - theirs| / |theirs|, the Euclidean norms over all parameters together.

    A parameter that only one side has a gradient for makes it infinite.
    """
    if ours.keys() != theirs.keys():
        return math.inf
    difference = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in ours)
    return math.sqrt(difference / sum(float(theirs[name].double().square().sum()) for name in ours))


def write_json(path: Path, content: Any) -> None:
    """Writes beside the file, flushes to disk, renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        json.dump(content, out, indent=2)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)
