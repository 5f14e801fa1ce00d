"""Why a run fits no launch, and what would make it fit, each tried before it is told. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.planning.amounts import Amounts
from handbook_ext.planning.choices import Choice, best_launch, gigabytes
from handbook_ext.planning.figures import Setting
from handbook_ext.planning.request import Request, rules_once, settings_of
from handbook_ext.recipes.overrides import parse_set

LORA = "model.lora={r: 16}"
Fits = Callable[[Request], bool]
MOST_GPUS = 8  # Of one machine.
SIZES = (1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 384, 512, 768, 1024)  # GB.


def refusal(request: Request, runs: Path, setting: Setting, choice: Choice, tried: Sequence[tuple[Setting, Choice]]) -> UserError:
    """Returns the error for a run that fits no launch: the smallest excess, and what would help."""
    worst = max(choice.excess, key=lambda each: each.needed - each.there)
    fits = partial(_fits, runs=runs, amounts=setting.amounts)
    found = _more_memory(request, fits, gpu=setting.machine.on_gpu)
    found += _more_gpus(request, fits, setting.sharding.processes) if setting.machine.on_gpu else []
    found += _adapters(request, fits)
    helps = ", or ".join(found) or "none of LoRA, twice the GPUs and twice the memory would; a smaller policy might"
    names = ", ".join(each.sharding.name for each, _ in tried)
    return UserError(
        f"{setting.run.name} does not fit {setting.machine.words}: closest is launch {setting.sharding.name} (tried: {names}), "
        f"under which with the smallest settings {worst.words}, {gigabytes(worst.needed - worst.there)} too little; "
        f"it would fit with {helps}"
    )


def _fits(request: Request, *, runs: Path, amounts: Amounts) -> bool:
    """Tells whether a request fits; False where it means nothing."""
    try:
        _, choice, _ = best_launch(settings_of(request, runs, amounts), rules_once())
    except UserError:
        return False
    return not choice.excess


def _more_memory(request: Request, fits: Fits, *, gpu: bool) -> list[str]:
    """Returns the least memory that would do, of the machine where that is limited, and of its GPUs."""
    found = []
    for name, value in (("RAM", request.ram), ("VRAM", request.vram)):
        if value is None and (gpu or name == "VRAM"):
            continue
        for size in SIZES:
            more = {name.lower(): str(size)}
            if size > float(value or 0) and fits(replace(request, **more)):  # type: ignore[arg-type]
                found.append(f"{name}={size}")
                break
    return found


def _more_gpus(request: Request, fits: Fits, processes: int) -> list[str]:
    """Returns the fewest GPUs, by doubling, that would do."""
    count = 2 * processes
    while count <= MOST_GPUS:
        if fits(replace(request, gpus=count)):
            return [f"GPUS={count}"]
        count *= 2
    return []


def _adapters(request: Request, fits: Fits) -> list[str]:
    """Returns that adapters would do, where they do; they are another method than training all weights."""
    stated = f"{request.set} '{LORA}'".strip()
    if "model.lora" in request.set or not parse_set(stated):
        return []
    return [f'adapters (SET="{LORA}", another method)'] if fits(replace(request, set=stated)) else []
