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

Timings = dict[str, dict[str, list[float]]]

TOLERANCE, TOLERANCE_BF16 = 1e-5, 0.05
EQUALISED = (
    "fp32 (TRL's default: bf16), no gradient checkpointing (TRL's default: on), no dropout, texts cut to max_length "
    "(TRL's default 1024), the same micro-batch and pairs; the optimizer's own update is left out everywhere"
)
NOTES = (
    "FLOPs: matrix products and attention as computed, masked entries included. Peak: weights of the models held plus "
    "the growth of resident memory in a step, gradients included. Speed-ups, per round: the seconds of TRL with a live reference "
    "model (or of SELM's official step), and of TRL with a precomputed one, divided by ours; 'ours + scoring' is compared with "
    "'precomputed + scoring' in the latter. In brackets with 'aim', what the project aims for on a CPU at the default size."
)


@dataclass(frozen=True)
class Baseline:
    """The parts whose seconds a row is compared with, and the speed-up aimed for, where there is an aim."""

    parts: tuple[str, ...]
    target: float | None = None


@dataclass(frozen=True)
class Variant:
    """A row of the table: the timed parts whose seconds add up, what they are compared with, the models in memory."""

    name: str
    parts: tuple[str, ...]
    models: int
    live: Baseline | None = None
    precomputed: Baseline | None = None


VARIANTS = (
    Variant("DPO, ours", ("dpo_ours",), 1, Baseline(("dpo_trl",), 2.5), Baseline(("dpo_trl_precomputed",), 2.0)),
    Variant(
        "DPO, ours + scoring", ("dpo_ours", "dpo_scoring"), 1, Baseline(("dpo_trl",), 2.0),
        Baseline(("dpo_trl_precomputed", "dpo_trl_scoring")),
    ),
    Variant("DPO, TRL, live reference", ("dpo_trl",), 2),
    Variant("DPO, TRL, reference precomputed", ("dpo_trl_precomputed",), 1),
    Variant("DPO, TRL, precomputed + scoring", ("dpo_trl_precomputed", "dpo_trl_scoring"), 1),
    Variant("DPO, ours, bf16", ("dpo_ours_bf16",), 1, Baseline(("dpo_trl_bf16",)), Baseline(("dpo_trl_precomputed_bf16",))),
    Variant("DPO, TRL, live reference, bf16", ("dpo_trl_bf16",), 2),
    Variant("DPO, TRL, precomputed, bf16", ("dpo_trl_precomputed_bf16",), 1),
    Variant("SELM, ours", ("selm_ours",), 1, Baseline(("selm_official",), 3.3)),
    Variant("SELM, ours + scoring", ("selm_ours", "selm_scoring"), 1, Baseline(("selm_official",), 2.5)),
    Variant("SELM, official step", ("selm_official",), 2),
    Variant("scoring pairs (DPO)", ("dpo_scoring",), 1),
    Variant("scoring pairs (SELM)", ("selm_scoring",), 1),
)  # fmt: skip
AGREEMENTS = {
    ("dpo_ours", "dpo_trl"): TOLERANCE, ("dpo_ours", "dpo_trl_precomputed"): TOLERANCE, ("selm_ours", "selm_official"): TOLERANCE,
    ("dpo_ours_bf16", "dpo_trl_bf16"): TOLERANCE_BF16,
}  # fmt: skip
"""Which losses and gradients must agree, and how far they may differ relatively."""


def summarise(size: Size, seed: int, steps: Steps, counted: dict[str, Any], timings: Timings) -> dict[str, Any]:
    """Returns what training.json holds: machine, settings, raw seconds, and the rows of the table."""
    weights = sum(w.numel() * w.element_size() for w in steps.reference.parameters())
    rows = []
    for variant in VARIANTS:
        seconds = _added(timings, variant.parts, "seconds")
        flops = sum(counted["flops"][part]["total"] for part in variant.parts)
        row: dict[str, Any] = {
            "variant": variant.name, "pairs_per_second": measuring.spread([size.pairs / s for s in seconds]),
            "seconds": seconds, "gflops_per_pair": flops / size.pairs / 1e9,
            "peak_bytes": variant.models * weights + max(max(timings[p]["peak_bytes"]) for p in variant.parts),
        }  # fmt: skip
        for name, baseline in (("live", variant.live), ("precomputed", variant.precomputed)):
            if baseline is not None:
                row[name] = {
                    "speed_up": _speed_up(timings, baseline.parts, variant.parts, "seconds"),
                    "speed_up_in_cpu_seconds": _speed_up(timings, baseline.parts, variant.parts, "cpu_seconds"),
                    "flop_ratio": sum(counted["flops"][part]["total"] for part in baseline.parts) / flops,
                    "target": baseline.target, "baseline": baseline.parts,
                }  # fmt: skip
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
    table = Table(
        "variant", "pairs/s [range]", "over the live reference", "over TRL precomputed", "GFLOP/pair", "FLOP ratio", "peak MiB"
    )
    for row in result["rows"]:
        table.add_row(
            row["variant"], interval(row["pairs_per_second"]), _ratio(row.get("live")), _ratio(row.get("precomputed")),
            f"{row['gflops_per_pair']:.2f}", f"{row['live']['flop_ratio']:.2f}x" if "live" in row else "",
            f"{row['peak_bytes'] / 2**20:.0f}",
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
            f"{check['gradient_relative_difference']:.1e} (at most {check['tolerance']:.0e}): "
            f"{'agrees' if check['agrees'] else 'DISAGREES'}", highlight=False,
        )  # fmt: skip
    console.print(NOTES, highlight=False)
    console.print(f"written: {path}", highlight=False)


def _added(timings: Timings, parts: tuple[str, ...], kind: str) -> list[float]:
    """Returns the seconds of a kind of the parts together, round by round."""
    return [sum(each) for each in zip(*(timings[part][kind] for part in parts), strict=True)]


def _speed_up(timings: Timings, theirs: tuple[str, ...], ours: tuple[str, ...], kind: str) -> dict[str, float]:
    """Returns by how much longer their parts take than ours, round by round."""
    return measuring.spread([t / s for t, s in zip(_added(timings, theirs, kind), _added(timings, ours, kind), strict=True)])


def _ratio(found: dict[str, Any] | None) -> str:
    """Returns a speed-up with its range and its aim."""
    if found is None:
        return ""
    return f"{interval(found['speed_up'])}x" + (f" (aim {found['target']})" if found["target"] else "")


def interval(numbers: dict[str, float]) -> str:
    """Returns `median [smallest-largest]`."""
    return f"{numbers['median']:.2f} [{numbers['min']:.2f}-{numbers['max']:.2f}]"
