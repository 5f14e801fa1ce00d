"""Starts a script as accelerate's launcher does, and says in one line which process ended it.

`python -m handbook_ext.core.accelerated --config_file recipes/accelerate/zero3.yaml scripts/train_policy.py FOLDER`: the words
are those of `accelerate launch`. A configuration without distribution is a plain process, which this one becomes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from handbook_ext.core.console import SAID
from handbook_ext.core.errors import run_main
from handbook_ext.core.machine import visible_gpus
from handbook_ext.core.per_device import ending
from handbook_ext.core.provenance import LAUNCH

# DeepSpeed calls functions of torch by their old names, some lines for each step.
QUIET = "ignore::FutureWarning:torch.distributed.c10d_logger"


def main(argv: list[str]) -> None:
    """Starts the processes and waits for them; all end as soon as one fails."""
    if not visible_gpus():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed looks for no device, and builds its operators for none.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # Else it is cpu:0, for which torch loads no checkpoint.
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), QUIET]))
    from accelerate.commands.config.config_args import load_config_from_file  # noqa: PLC0415 - seconds, and --help needs none
    from accelerate.commands.launch import launch_command_parser  # noqa: PLC0415

    arguments = launch_command_parser().parse_args(argv)
    os.environ[LAUNCH] = Path(arguments.config_file or "").stem
    config = load_config_from_file(arguments.config_file)
    # Accelerate's own is one port, which another training on this machine may have; 0 is any that is free.
    if (arguments.num_machines or config.num_machines or 1) == 1 and getattr(config, "main_process_port", None) is None:
        arguments.main_process_port = arguments.main_process_port or 0
    if str(config.distributed_type) in ("NO", "DistributedType.NO"):
        # accelerate would start a child, whose signals and exit codes it does not hand on.
        alone = [sys.executable, "-m", "handbook_ext.core.alone", arguments.training_script, *arguments.training_script_args]
        os.execv(sys.executable, alone)  # noqa: S606
    with tempfile.TemporaryDirectory(prefix="handbook-") as said:
        os.environ[SAID] = said
        _launch(arguments, Path(said))


def _launch(arguments: Any, said: Path) -> None:
    """Starts the processes as accelerate does; ends with the exit code of the first that fails."""
    from accelerate.commands.launch import launch_command  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415

    try:
        launch_command(arguments)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        told = any(each == 0 and failure.exitcode == 2 for each, failure in error.failures.items())
        processes = int(arguments.num_processes or len(error.failures))
        sys.stderr.write(ending(rank, processes, first.exitcode, said, told=told))
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    run_main(main)
