"""How the speed of a step grows with the length of sequences and with the policy's weights: ours beside TRL's.

Tokens are those that a user counts: prompt and completion of both sequences of each pair, the same number for every trainer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from handbook_ext.bench import measuring
from handbook_ext.bench.measuring import LengthDistribution, PairDistribution
from handbook_ext.bench.steps import Size, Steps

NAMES = {"dpo_ours": "ours", "dpo_trl": "TRL live", "dpo_trl_precomputed": "TRL precomputed"}
KINDS = ("seconds", "cpu_seconds")  # The processor's hardly depend on other load, where one thread computes.
TOKENS = 16_384  # Of a step over small weights, for all lengths.
LENGTHS = (256, 512, 1024, 2048, 4096)
AT_LENGTH = 512  # Tokens of a sequence where weights grow.


def sized(length: int, pairs: int, vocabulary: int = 512, **model: Any) -> Size:
    """Returns a size whose sequences have about `length` tokens, a third of them the prompt, all pairs in one micro-batch."""
    lengths = PairDistribution(
        prompt=LengthDistribution(length / 3, 0.05), completion=LengthDistribution(length * 2 / 3, 0.05), max_length=length,
        vocabulary=vocabulary,
    )  # fmt: skip
    return Size(pairs=pairs, micro_batch=pairs, distribution=lengths, **model)


def cases(*, quick: bool) -> dict[str, Size]:
    """Returns what is measured, by name: lengths at the benchmark's 3 M weights, then weights at one length."""
    if quick:
        small = {"hidden": 64, "mlp": 128, "layers": 2, "heads": 1}
        return {f"{length} tokens": sized(length, 2, **small) for length in (48, 96)}
    by_length = {f"{length} tokens": sized(length, TOKENS // length // 2) for length in LENGTHS}
    by_weights = {
        "16 M weights": sized(AT_LENGTH, 8, 2048, hidden=512, mlp=1280, layers=6, heads=8),
        "50 M weights": sized(AT_LENGTH, 4, 8192, hidden=640, mlp=1664, layers=10, heads=10),
        # SmolLM2-135M's shape but for its three heads of keys, here one.
        "135 M weights": sized(AT_LENGTH, 2, 49_152, hidden=576, mlp=1536, layers=30, heads=9, tied=True),
    }
    return by_length | by_weights


def measure(size: Size, seed: int, rounds: int, tick: Callable[[], object]) -> dict[str, Any]:
    """Returns tokens per second of each trainer in interleaved rounds, the number of weights, and whether the losses agree."""
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(size, seed, Path(folder), only=NAMES)
        weights = sum(weight.numel() for weight in steps.reference.parameters())
        tokens = sum(2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in steps.pairs["dpo"])
        raw: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in KINDS} for name in NAMES}
        losses = {}
        for number in range(rounds + 1):
            for name in list(NAMES)[number % len(NAMES) :] + list(NAMES)[: number % len(NAMES)]:
                if number:
                    found = measuring.timed(partial(steps.parts[name], 0))
                    for kind in KINDS:
                        raw[name][kind].append(found[kind])
                else:  # The first round warms up, and shows that all compute the same.
                    losses[name] = steps.parts[name](0)
                steps.trained[name].zero_grad(set_to_none=True)
                tick()
    return {
        "weights": weights, "tokens": tokens, "losses": losses, "raw": raw,
        "tokens_per_second": {
            name: measuring.spread([tokens / each for each in found["seconds"]]) for name, found in raw.items()
        },
        **{f"speed_up_in_{kind}": _speed_ups(raw, kind) for kind in KINDS},
    }  # fmt: skip


def _speed_ups(raw: Mapping[str, Mapping[str, Sequence[float]]], kind: str) -> dict[str, dict[str, float]]:
    """Returns by how much each of TRL's ways takes longer than ours, round by round."""
    ours = raw["dpo_ours"][kind]
    return {
        name: measuring.spread([theirs / mine for theirs, mine in zip(found[kind], ours, strict=True)])
        for name, found in raw.items()
        if name != "dpo_ours"
    }


def table_of(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns the table: a row per case."""
    table = Table(
        "case", *(f"{name}, tokens/s" for name in NAMES.values()), *(f"over {name}" for name in list(NAMES.values())[1:])
    )
    for case, numbers in found.items():
        speeds = [f"{numbers['tokens_per_second'][name]['median']:.0f}" for name in NAMES]
        ratios = [f"{numbers['speed_up_in_seconds'][name]['median']:.2f}x" for name in list(NAMES)[1:]]
        table.add_row(f"{case} ({numbers['weights'] / 1e6:.1f} M)", *speeds, *ratios)
    return table
