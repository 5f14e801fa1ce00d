"""Measuring training steps: pairs with the lengths of chat data, seconds, counted FLOPs, peak memory, agreement.

Lengths are in tokens, seconds are wall clock, a multiply-add counts as two FLOPs, memory is in bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
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

from handbook_ext.core.jsonl import replacing
from handbook_ext.policies.packing import EncodedPair

ATEN = torch.ops.aten
# Operators of a CPU step that torch 2.13's counter has no formula for (attention, and TRL's in-place product), and the
# counted operator of equal cost.
UNCOUNTED = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: ATEN._scaled_dot_product_flash_attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: ATEN._scaled_dot_product_flash_attention_backward,
    ATEN.addmm_: ATEN.addmm,
}
SAMPLING_INTERVAL = 0.002  # Seconds between two readings of the memory.


@dataclass(frozen=True)
class LengthDistribution:
    """A log-normal distribution of lengths: its median in tokens, and the standard deviation of the logarithm."""

    median: float
    spread: float

    def grid(self, count: int) -> list[int]:
        """Returns `count` quantiles at evenly spaced probabilities, in tokens, ascending, each at least 2."""
        normal = NormalDist(math.log(self.median), self.spread)
        return [max(2, round(math.exp(normal.inv_cdf((i + 0.5) / count)))) for i in range(count)]


@dataclass(frozen=True)
class PairDistribution:
    """Lengths of a batch's prompts and completions; log-lengths of a prompt's completions have the given correlation."""

    prompt: LengthDistribution = LengthDistribution(100, 0.85)
    completion: LengthDistribution = LengthDistribution(175, 0.8)
    correlation: float = 0.45
    max_length: int = 1024
    vocabulary: int = 512
    first_word: int = 2
    end_id: int = 1

    def draw(self, count: int, seed: int) -> list[EncodedPair]:
        """Returns pairs of random words whose lengths are the quantiles of the distributions, combined by seed.

        All seeds thus have the same lengths, and no batch misses the tail by chance. The explored sample is the chosen
        completion in one third of the pairs, the rejected in one third, a completion of its own in one third.
        """
        rng = random.Random(seed)
        prompts = [min(length, self.max_length - 2) for length in rng.sample(self.prompt.grid(count), count)]
        shared = [rng.gauss(0, 1) for _ in range(count)]
        completions = [self._completion_lengths(shared, rng) for _ in range(3)]
        pairs = []
        for number, (prompt, *lengths) in enumerate(zip(prompts, *completions, strict=True)):
            chosen, rejected, third = (self._completion(min(n, self.max_length - prompt), rng) for n in lengths)
            explore = (chosen, rejected, third)[number % 3]
            pairs.append(EncodedPair(self._words(prompt, rng), chosen, rejected, explore))
        return pairs

    def _completion_lengths(self, shared: list[float], rng: random.Random) -> list[int]:
        """Returns the quantiles of the completions' lengths, one per prompt, ordered by a score of which a part is shared.

        Scores a z + b e with a^2 + b^2 = 1 have correlation a^2 between two completions of a prompt, where z is the prompt's
        normal draw in `shared` and e the completion's own; ranks carry most of it over to the log-normal lengths.
        """
        own, common = math.sqrt(1 - self.correlation), math.sqrt(self.correlation)
        scores = [common * value + own * rng.gauss(0, 1) for value in shared]
        lengths = [0] * len(shared)
        ranked = sorted(range(len(shared)), key=scores.__getitem__)
        for length, index in zip(self.completion.grid(len(shared)), ranked, strict=True):
            lengths[index] = length
        return lengths

    def _words(self, count: int, rng: random.Random) -> list[int]:
        """Returns random token ids without special tokens."""
        return [rng.randrange(self.first_word, self.vocabulary) for _ in range(count)]

    def _completion(self, length: int, rng: random.Random) -> list[int]:
        """Returns a completion of that many tokens, the end token included."""
        return [*self._words(length - 1, rng), self.end_id]


def length_quantiles(pairs: Sequence[EncodedPair]) -> dict[str, dict[str, float]]:
    """Returns the 10, 25, 50, 75, 90 % quantiles, maximum and mean of the lengths of prompts and completions, in tokens."""
    lengths = {
        "prompt": [len(pair.prompt) for pair in pairs],
        "completion": [len(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)],
        "prompt and completion": [len(pair.prompt) + len(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)],
    }
    quantiles = {}
    for name, values in lengths.items():
        ranked = sorted(values)
        quantiles[name] = {f"{q}%": float(ranked[len(ranked) * q // 100]) for q in (10, 25, 50, 75, 90)}
        quantiles[name] |= {"max": float(ranked[-1]), "mean": round(statistics.fmean(ranked), 1)}
    return quantiles


def count_flops(step: Callable[[], float]) -> tuple[float, dict[str, int]]:
    """Returns the value of a step, which it runs, and the FLOPs of its matrix products: attention, other and total.

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

    Freed memory is returned to the system first: memory that the allocator kept from earlier code could be used again
    without any growth.
    """

    def __init__(self) -> None:
        """Starts with nothing measured."""
        self.bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        """Starts sampling."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # Without glibc, memory that is used again is not seen.
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
    """Returns the seconds of a step, which it runs, the processor seconds of all threads, and the peak growth of memory (bytes).

    With one thread, processor seconds hardly depend on the machine's other load; with several, waiting threads count as busy.
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

    Infinite where a parameter has a gradient on one side only.
    """
    if ours.keys() != theirs.keys():
        return math.inf
    difference = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in ours)
    return math.sqrt(difference / sum(float(theirs[name].double().square().sum()) for name in ours))


def write_json(path: Path, content: Any) -> None:
    """Writes content as JSON: beside the file, flushed to disk, then renamed, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as out:
        json.dump(content, out, indent=2)
        out.write("\n")
