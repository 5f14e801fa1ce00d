"""Training's checkpoints, from which a killed stage resumes: which are whole and unchanged, and which a launch can read.

A checkpoint is whole once it has its record, which lists its files with their sizes and checksums and is written last. Whatever
differs from its record is set aside, and training goes on from the one before it, or from its beginning.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

from torch import distributed
from transformers import TrainerCallback, TrainingArguments

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.console import say
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import replace_text
from handbook_ext.policies.launch import Launch

COMPLETE = "complete"
"""The record of a checkpoint: `{"files": {name: [bytes, CRC-32 or null]}}`."""
ASIDE = "damaged-"
CHECKED = 2 * 1024**3  # Bytes. Of a larger file the size alone is compared: a second per GiB is more than a checkpoint may cost.
CHUNK = 1 << 22


class MarkComplete(TrainerCallback):
    """Marks each checkpoint once it is whole, so that a killed run never resumes from half of one; ends what has diverged."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the record: Trainer calls this after a process has written its last file of a checkpoint."""
        if distributed.is_initialized():
            distributed.barrier()  # Where the policy is sharded, each process writes a part.
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            replace_text(folder / COMPLETE, json.dumps({"files": checksums(folder)}))

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Raises UserError, on every process, once a gradient is NaN: all weights are, and stay so, whatever follows."""
        norm = (logs or {}).get("grad_norm")
        if norm is not None and math.isnan(float(norm)):
            raise UserError(
                f"{args.output_dir}: training has diverged: the gradient of step {state.global_step} is NaN; lower learning_rate "
                "or max_grad_norm, or raise warmup_ratio, and run make: it then starts afresh"
            )


def checksums(folder: Path) -> dict[str, list[int | None]]:
    """Returns size in bytes and CRC-32 of each file of a checkpoint by its relative name; no CRC (None) of files above 2 GiB."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((COMPLETE, f".{COMPLETE}")))
    return {path.relative_to(folder).as_posix(): _record(path) for path in files}


def last_complete_checkpoint(folder: Path) -> str | None:
    """Returns the newest whole checkpoint of a folder, or None; its files are not read."""
    found = _complete(folder)
    return str(found[-1]) if found else None


def sound_checkpoint(folder: Path) -> str | None:
    """Returns the newest checkpoint of a folder that is as it was written, or None. To be called by one process alone.

    Those after it that are not are set aside, and half-written ones removed; each with a line on stderr.
    """
    for cut in [path for path in folder.glob("checkpoint-*") if not (path / COMPLETE).is_file()]:
        shutil.rmtree(cut, ignore_errors=True)
        say(f"note: {cut}: this checkpoint of a training was written in part when that ended, and was removed")
    for path in reversed(_complete(folder)):
        fault = fault_of(path)
        if fault is None:
            return str(path)
        aside = path.with_name(f"{ASIDE}{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        before = last_complete_checkpoint(folder)
        say(
            f"note: {path}: this checkpoint of a training is damaged ({fault}) and was renamed to {aside.name}; training goes on "
            f"from {Path(before).name if before else 'its beginning'}"
        )
    return None


def fault_of(checkpoint: Path) -> str | None:
    """Returns how a checkpoint differs from its record, or None where it does not: its files are read for that."""
    record = json_object(checkpoint / COMPLETE)
    files = record.get("files") if record is not None else None
    if not isinstance(files, dict):
        return "it has no checksums"
    for name, (size, checksum) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if checksum is not None and _record(path)[1] != checksum:
            return f"{name} has another content than was written"
    return None


def resume_point(workspace: Path, launch: Launch) -> str | None:
    """Returns the newest sound checkpoint that this launch can read, or None, and says so where it cannot read any of others.

    The first process looks for all of them, which all call this.
    """
    own = launch.first_alone(lambda: sound_checkpoint(workspace / launch.checkpoints))
    others = {path.name for path in workspace.glob("checkpoints*") if last_complete_checkpoint(path) is not None}
    if own is None and others and launch.main:
        say(
            f"note: {workspace}: training was begun by another launch, and this one ({launch.checkpoints}) cannot read "
            f"{', '.join(sorted(others))}; it starts from the beginning: to go on instead, repeat the command under that launch"
        )
    return own


def _complete(folder: Path) -> list[Path]:
    """Returns the whole checkpoints of a folder, the newest last."""
    # By number: as text, checkpoint-9 comes after checkpoint-10.
    found = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=lambda path: int(path.name.split("-")[-1]))


def _record(path: Path) -> list[int | None]:
    """Returns size and CRC-32 of a file."""
    size, checksum = path.stat().st_size, 0
    if size > CHECKED:
        return [size, None]
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return [size, checksum]
