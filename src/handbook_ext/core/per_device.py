"""Starts a script once per device: `python -m handbook_ext.core.per_device --processes 8 scripts/generate_completions.py FOLDER`.

The processes form no process group of torch, since vLLM makes its own. They meet at a store that this launcher holds on the
loopback interface, whose address they find in HANDBOOK_STORE, beside HANDBOOK_RANK and HANDBOOK_PROCESSES.

On several nodes each has a launcher, all with the same `--nodes`, `--processes` (of one node) and `--store` (a host and port of
the first node, whose launcher holds the store). Ranks count over all nodes; where one launcher fails, the others end theirs.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from handbook_ext.core.console import LOG, SAID
from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.machine import visible_devices

RANK, PROCESSES, STORE = "HANDBOOK_RANK", "HANDBOOK_PROCESSES", "HANDBOOK_STORE"
GRACE = 10.0  # Seconds that a process has to end by itself.
POLL = 0.1  # Seconds between two looks at the processes.
ARRIVAL = timedelta(minutes=10)  # In which all nodes must have started their launchers.
FAILED, ENDED = "a launcher failed", "launchers that ended"
Failure = tuple[int | None, int]
"""The place of a process on its node and its exit code; no place where it was another node's."""
PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Starts the processes, waits for them, and ends all as soon as one fails."""
    parser = argparse.ArgumentParser(description=__doc__, prog="per_device")
    parser.add_argument("--processes", type=int, required=True, help="how many processes")
    parser.add_argument("--devices-each", type=int, default=1, help="GPUs of each")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes have such a launcher")
    parser.add_argument("--node-rank", type=int, default=0, help="which of them this is, counted from 0")
    parser.add_argument("--store", default="127.0.0.1:0", metavar="HOST:PORT", help="where the first node holds the store")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the script and its arguments")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or not arguments.command:
        raise UserError("per_device: give --processes from 1, and a script; see --help")
    nodes, node = arguments.nodes, arguments.node_rank
    if not 0 <= node < nodes or not re.fullmatch(r".+:[0-9]+", arguments.store) or (nodes > 1 and arguments.store.endswith(":0")):
        raise UserError(
            "per_device: give --node-rank from 0 and below --nodes, and of several nodes --store HOST:PORT; see --help"
        )
    shares = shares_of(visible_devices(), arguments.processes, arguments.devices_each)
    store, address = _store(arguments.store, node)
    first, total = node * len(shares), nodes * len(shares)
    others_failed = (lambda: _told_of_failure(store)) if nodes > 1 else lambda: False
    started: list[subprocess.Popen[bytes]] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _leave)
    said = tempfile.mkdtemp(prefix="handbook-")
    atexit.register(shutil.rmtree, said, ignore_errors=True)
    try:
        for rank, share in enumerate(shares):
            own = {RANK: str(first + rank), PROCESSES: str(total), STORE: address, SAID: said, **share}
            started.append(subprocess.Popen([sys.executable, *arguments.command], env={**os.environ, **own}))
        failed = _first_failure(started, others_failed)
        if nodes > 1:
            failed = _ended(store, nodes, node, failed)
    finally:
        _end(started)
    if failed is not None:
        place, code = failed
        if place is None:
            sys.stderr.write(
                f"error: node {node} of {nodes}: another node's processes failed, so these were ended; see its lines\n"
            )
        else:
            sys.stderr.write(ending(first + place, total, code, Path(said), told=started[0].returncode == 2 and node == 0))
        sys.exit(code if code > 0 else 128 - code)


def ending(rank: int, processes: int, code: int, said: Path, *, told: bool) -> str:
    """Returns the line that says how the first process that failed has ended.

    said: the folder for messages of processes other than the first. told: the first one has told a user's mistake, the only
    one that it knows of, itself.
    """
    if code == 2:
        own = said / str(rank)
        # A process that has left no message ended because the first one did, which tells its own.
        return own.read_text(encoding="utf-8") if own.is_file() and not told else ""
    log = logged(said, "log: ", "\n")
    if (said / str(rank)).is_file():  # Such as that the disk is full.
        return (said / str(rank)).read_text(encoding="utf-8") + log
    return (
        f"error: process {rank} of {processes} {how_it_ended(code)}; the others were ended, run make again, which keeps what is "
        f"finished\n{log}"
    )


def how_it_ended(code: int) -> str:
    """Returns how a process ended, by its exit code: below 0 it is a signal."""
    if code >= 0:
        return f"ended with {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
    return f"was ended by {name}" + (", as the kernel does where memory is short" if name == "SIGKILL" else "")


def logged(said: Path, before: str, behind: str = "") -> str:
    """Returns where the first process's log lies, between what is put around it; "" where there is none."""
    return f"{before}{(said / LOG).read_text(encoding='utf-8')}{behind}" if (said / LOG).is_file() else ""


def _store(place: str, node: int) -> tuple[Any, str]:
    """Returns the store, held by the launcher of the first node, and its address; a UserError where it cannot be reached."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 - slow, and --help needs none

    host, _, port = place.rpartition(":")
    try:
        store = TCPStore(host, int(port), is_master=node == 0, wait_for_workers=False, timeout=ARRIVAL)
    except DistError as error:
        what = "is taken, or no address of this node" if node == 0 else f"was not reached within {ARRIVAL}"
        raise UserError(
            f"per_device: --store {place} {what} ({str(error).partition(chr(10))[0]}); start the stage again"
        ) from None
    return store, f"{host}:{store.port}"


def _told_of_failure(store: Any) -> bool:
    """Tells whether another node's launcher has failed, or the one that holds the store is gone."""
    try:
        return bool(store.check([FAILED]))
    except RuntimeError:  # The store's own errors are of this kind.
        return True


def _ended(store: Any, nodes: int, node: int, failed: Failure | None) -> Failure | None:
    """Tells the other nodes how this one's processes ended, and returns that; the first node's waits until all have told.

    It holds the store, which must outlive the processes of every node.
    """
    try:
        if failed is not None:
            store.set(FAILED, "")
            return failed
        store.add(ENDED, 1)
        while node == 0 and store.add(ENDED, 0) < nodes:
            if _told_of_failure(store):
                return None, 1
            time.sleep(POLL)
    except RuntimeError:
        return failed or (None, 1)
    return None


def shares_of(devices: Sequence[str], processes: int, each: int) -> list[Mapping[str, str]]:
    """Returns what the environment of each process says of its devices; nothing where the machine has none.

    Raises UserError where there are fewer devices than the processes need.
    """
    if not devices:
        return [{}] * processes
    if len(devices) < processes * each:
        raise UserError(
            f"{processes} processes with {each} GPUs each need {processes * each}, and {len(devices)} are visible; give GPUS="
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[rank * each : (rank + 1) * each])} for rank in range(processes)]


def _first_failure(started: Sequence[subprocess.Popen[bytes]], others_failed: Callable[[], bool]) -> Failure | None:
    """Returns the first process that fails, as soon as it does; None once all have ended well."""
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                return rank, code
        if all(code == 0 for code in codes):
            return None
        if others_failed():
            return None, 1
        time.sleep(POLL)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the processes that still run, by force where they do not listen."""
    for process in started:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in started:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _leave(signum: int, frame: FrameType | None) -> None:
    """Ends the launcher, and with it, on the way out, its processes."""
    sys.exit(128 + signum)


def end_with_launcher() -> None:
    """Has the kernel end this process with the one that started it, whatever ends that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    run_main(main)
