"""Why a run fits no launch, and what would make it fit, each tried before it is told. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.planning.choices import Choice, best_launch, gigabytes
from handbook_ext.planning.figures import Setting
from handbook_ext.planning.request import Request, rules_once, settings_of
from handbook_ext.recipes.overrides import parse_set

LORA = "model.lora={r: 16}"
MOST_GPUS = 8  # Of one machine.


def refusal(request: Request, runs: Path, setting: Setting, choice: Choice, tried: Sequence[tuple[Setting, Choice]]) -> UserError:
    """Returns the error for a run that fits no launch: the smallest excess, and what would help."""
    worst = max(choice.excess, key=lambda each: each.needed - each.there)
    found = [*_more_memory(request, runs, worst.what), *_more_gpus(request, runs, setting), *_adapters(request, runs)]
    helps = ", or ".join(found) or "none of LoRA, twice the GPUs and twice the memory would; a smaller policy might"
    names = ", ".join(each.sharding.name for each, _ in tried)
    return UserError(
        f"{setting.run.name} does not fit {setting.machine.words}: closest is launch {setting.sharding.name} (tried: {names}), "
        f"under which with the smallest settings {worst.words}, {gigabytes(worst.needed - worst.there)} too little; "
        f"it would fit with {helps}"
    )


def _fits(request: Request, runs: Path) -> Choice | None:
    """Returns the choice of a request, None where it does not fit or means nothing."""
    try:
        _, choice, _ = best_launch(settings_of(request, runs), rules_once())
    except UserError:
        return None
    return None if choice.excess else choice


def _more_memory(request: Request, runs: Path, what: str) -> list[str]:
    """Returns the least memory that would do, of GPUs or of the machine."""
    name = "RAM" if what == "main memory" else "VRAM"
    sizes = (16, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 384, 512, 768, 1024)
    stated = request.ram if name == "RAM" else request.vram
    for size in sizes:
        if stated is None or size > math.floor(float(stated)):
            tried = replace(request, ram=str(size)) if name == "RAM" else replace(request, vram=str(size))
            if _fits(tried, runs) is not None:
                return [f"{name}={size}"]
    return []


def _more_gpus(request: Request, runs: Path, setting: Setting) -> list[str]:
    """Returns the fewest GPUs, by doubling, that would do."""
    count = 2 * setting.sharding.processes
    while setting.machine.on_gpu and count <= MOST_GPUS:
        if _fits(replace(request, gpus=count), runs) is not None:
            return [f"GPUS={count}"]
        count *= 2
    return []


def _adapters(request: Request, runs: Path) -> list[str]:
    """Returns that adapters would do, where they do; they are another method than training all weights."""
    stated = f"{request.set} '{LORA}'".strip()
    if "model.lora" in request.set or not parse_set(stated):
        return []
    return [f'adapters (SET="{LORA}", another method)'] if _fits(replace(request, set=stated), runs) is not None else []
