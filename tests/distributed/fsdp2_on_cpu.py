"""Runs a script under FSDP2 on CPU processes: `accelerate launch --config_file fsdp2.yaml ... fsdp2_on_cpu.py SCRIPT ...`.

accelerate takes FSDP for accelerators alone, and trains with DDP where it is told to use the CPU. So this has it take the CPU for
an accelerator, with gloo; what it then shards, gathers and saves is PyTorch's own FSDP2.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState


def main(argv: list[str]) -> None:
    """Runs the script with its arguments."""
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    for kind in (PartialState, AcceleratorState):
        _without_cpu(kind)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


def _without_cpu(kind: Any) -> None:
    """Has a state of accelerate be made as where there is an accelerator."""
    made = kind.__init__

    def make(self: Any, *positional: Any, **named: Any) -> None:
        """Makes it."""
        named.pop("cpu", None)
        made(self, **named) if kind is PartialState else made(self, *positional[:1], cpu=False, **named)

    kind.__init__ = make


if __name__ == "__main__":
    main(sys.argv[1:])
