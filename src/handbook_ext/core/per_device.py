"""Starts a script once per device: `python -m handbook_ext.core.per_device --processes 8 scripts/generate_completions.py FOLDER`.

The processes form no process group of torch, since vLLM makes its own. They meet at a store that this launcher holds on the
loopback interface, whose address they find in HANDBOOK_STORE, beside HANDBOOK_RANK and HANDBOOK_PROCESSES.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.core.machine import visible_devices

RANK, PROCESSES, STORE = "HANDBOOK_RANK", "HANDBOOK_PROCESSES", "HANDBOOK_STORE"
GRACE = 10.0  # Seconds that a process has to end by itself.
POLL = 0.1  # Seconds between two looks at the processes.
PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Starts the processes, waits for them, and ends all as soon as one fails."""
    parser = argparse.ArgumentParser(description=__doc__, prog="per_device")
    parser.add_argument("--processes", type=int, required=True, help="how many processes")
    parser.add_argument("--devices-each", type=int, default=1, help="GPUs of each")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the script and its arguments")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or not arguments.command:
        raise UserError("per_device: give --processes from 1, and a script; see --help")
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415 - slow, and --help needs none

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shares = shares_of(visible_devices(), arguments.processes, arguments.devices_each)
    started = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _leave)
    try:
        for rank, share in enumerate(shares):
            own = {RANK: str(rank), PROCESSES: str(len(shares)), STORE: f"127.0.0.1:{store.port}", **share}
            started.append(subprocess.Popen([sys.executable, *arguments.command], env={**os.environ, **own}))
        failed = _first_failure(started)
    finally:
        _end(started)
    if failed is not None:
        rank, code = failed
        sys.stderr.write(ending(rank, len(shares), code))
        sys.exit(code if code > 0 else 128 - code)


def ending(rank: int, processes: int, code: int) -> str:
    """Returns the line that says how the first process that failed has ended; none for 2, a mistake that it has told itself."""
    if code == 2:
        return ""
    how = f"ended with {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        how = f"was ended by {name}" + (", as the kernel does where memory is short" if name == "SIGKILL" else "")
    return f"error: process {rank} of {processes} {how}; the others were ended, run make again, which keeps what is finished\n"


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


def _first_failure(started: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Returns rank and exit code of the first process that fails, as soon as it does; None once all have ended well."""
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                return rank, code
        if all(code == 0 for code in codes):
            return None
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
