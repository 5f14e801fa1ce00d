"""What `make bench` reports: the variants, their numbers as JSON, and the table on the console."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from handbook_ext.bench import measuring
from handbook_ext.bench.steps import Size, Steps
from handbook_ext.core.provenance import code_state, hardware, package_versions

TOLERANCE = 1e-5
EQUALISED = (
    "fp32 (TRL's default: bf16), no gradient checkpointing (TRL's default: on), no dropout, texts cut to max_length "
    "(TRL's default 1024), the same micro-batch and pairs; the optimizer's own update is left out everywhere"
)
NOTES = (
    "FLOPs: matrix products and attention as computed, masked entries included. Peak: weights of the models held plus "
    "the growth of resident memory in a step, gradients included. Speed-up: the baseline's seconds divided by ours, per round. "
    "target: the speed-up that the project aims for on a CPU at the default size."
)


@dataclass(frozen=True)
class Variant:
    """A row of the table: the timed parts whose seconds add up, its baseline, the speed-up aimed for, the models in memory."""

    name: str
    parts: tuple[str, ...]
    baseline: str | None
    target: float | None
    models: int


VARIANTS = (
    Variant("DPO, ours", ("dpo_ours",), "dpo_trl", 2.5, 1),
    Variant("DPO, ours + scoring", ("dpo_ours", "dpo_scoring"), "dpo_trl", 2.0, 1),
    Variant("DPO, TRL DPOTrainer", ("dpo_trl",), None, None, 2),
    Variant("SELM, ours", ("selm_ours",), "selm_official", 3.3, 1),
    Variant("SELM, ours + scoring", ("selm_ours", "selm_scoring"), "selm_official", 2.5, 1),
    Variant("SELM, official step", ("selm_official",), None, None, 2),
    Variant("scoring pairs (DPO)", ("dpo_scoring",), None, None, 1),
    Variant("scoring pairs (SELM)", ("selm_scoring",), None, None, 1),
)


def summarise(
    size: Size, seed: int, steps: Steps, counted: dict[str, Any], timings: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Returns what training.json holds: machine, settings, raw seconds, and the rows of the table."""
    weights = sum(w.numel() * w.element_size() for w in steps.reference.parameters())
    rows = []
    for variant in VARIANTS:
        seconds = [sum(parts) for parts in zip(*(timings[p]["seconds"] for p in variant.parts), strict=True)]
        flops = sum(counted["flops"][part]["total"] for part in variant.parts)
        row: dict[str, Any] = {
            "variant": variant.name, "pairs_per_second": measuring.spread([size.pairs / s for s in seconds]),
            "seconds": seconds, "gflops_per_pair": flops / size.pairs / 1e9,
            "peak_bytes": variant.models * weights + max(max(timings[p]["peak_bytes"]) for p in variant.parts),
        }  # fmt: skip
        if variant.baseline is not None:
            theirs = timings[variant.baseline]["seconds"]
            row["speed_up"] = measuring.spread([t / s for t, s in zip(theirs, seconds, strict=True)])
            row["flop_ratio"] = counted["flops"][variant.baseline]["total"] / flops
            row["target"] = variant.target
        rows.append(row)
    # fp32 weights have 4 bytes.
    return {
        "machine": hardware(), "threads": torch.get_num_threads(), "versions": package_versions(), "code": code_state(),
        "settings": asdict(size) | {"seed": seed, "equalised": EQUALISED, "parameters": weights // 4},
        "lengths": measuring.length_quantiles(steps.pairs["dpo"]), "flops": counted["flops"],
        "agreement": counted["agreement"], "rows": rows, "raw": timings,
    }  # fmt: skip


def show(result: dict[str, Any], path: Path) -> None:
    """Prints settings, lengths, the table and the agreement."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("variant", "pairs/s [range]", "speed-up [range]", "target", "GFLOP/pair", "FLOP ratio", "peak MiB")
    for row in result["rows"]:
        ratio = row.get("speed_up")
        table.add_row(
            row["variant"], interval(row["pairs_per_second"]), interval(ratio) + "x" if ratio else "",
            f"{row['target']}x" if ratio else "", f"{row['gflops_per_pair']:.2f}",
            f"{row['flop_ratio']:.2f}x" if ratio else "", f"{row['peak_bytes'] / 2**20:.0f}",
        )  # fmt: skip
    console.print(table)
    settings, lengths = result["settings"], result["lengths"]
    console.print(
        f"{settings['pairs']} pairs per step, micro-batch {settings['micro_batch']}, "
        f"{settings['parameters'] / 1e6:.1f} M weights, {result['threads']} threads, "
        f"{len(result['rows'][0]['seconds'])} timed rounds. Equal on both sides: {EQUALISED}.",
        highlight=False,
    )
    for name, numbers in lengths.items():
        console.print(f"tokens of {name}: " + ", ".join(f"{k} {v:g}" for k, v in numbers.items()), highlight=False)
    for name, check in result["agreement"].items():
        console.print(
            f"{name}: loss differs by {check['loss_relative_difference']:.1e}, gradient by "
            f"{check['gradient_relative_difference']:.1e} (at most {TOLERANCE:.0e}): "
            f"{'agrees' if check['agrees'] else 'DISAGREES'}", highlight=False,
        )  # fmt: skip
    console.print(NOTES, highlight=False)
    console.print(f"written: {path}", highlight=False)


def interval(numbers: dict[str, float]) -> str:
    """Returns `median [smallest-largest]`."""
    return f"{numbers['median']:.2f} [{numbers['min']:.2f}-{numbers['max']:.2f}]"
