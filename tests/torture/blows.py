"""What is done to a run while make works on it: each blow strikes processes, or takes the disk away; none knows the stages."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HEADROOM = 256 * 1024
"""The most bytes that a full disk leaves: less than a checkpoint of the small recipe, more than some of its files."""


@dataclass(frozen=True)
class Victim:
    """A make at work in a session of its own: its process, the folder of its runs, and what tells its warm server."""

    make: subprocess.Popen[bytes]
    runs: Path
    temporary: Path


def processes_of(session: int) -> dict[int, str]:
    """Returns the command lines of the processes of a session, by their number."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if os.getsid(int(folder.name)) == session:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
    return found


def servers_of(temporary: Path) -> dict[int, str]:
    """Returns the warm servers, and the stages that they have forked, of whoever has this temporary folder."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"TMPDIR={temporary}\0".encode() in (folder / "environ").read_bytes():
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "warm_start --serve" in words:
                    found[int(folder.name)] = words
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
    return found


def kill(numbers: list[int], how: signal.Signals = signal.SIGKILL) -> bool:
    """Sends a signal to processes; returns whether one of them was there to get it."""
    struck = False
    for number in numbers:
        try:
            os.kill(number, how)
            struck = True
        except ProcessLookupError:
            continue
    return struck


def group(victim: Victim, dice: random.Random) -> bool:
    """SIGKILL for make and all that it started, as a batch system does."""
    return kill([*processes_of(victim.make.pid)])


def stage(victim: Victim, dice: random.Random) -> bool:
    """SIGKILL for one stage alone, as the kernel does when memory is short: a child of the server, or a script of its own."""
    forked = [number for number in servers_of(victim.temporary) if _parent(number) in servers_of(victim.temporary)]
    mine = processes_of(victim.make.pid)
    plain = [number for number, words in mine.items() if " scripts/" in words and "warm_start" not in words]
    found = forked + plain
    return kill([dice.choice(found)]) if found else False


def client(victim: Victim, dice: random.Random) -> bool:
    """SIGKILL for what make waits for: the client of the warm server."""
    found = [number for number, words in processes_of(victim.make.pid).items() if "warm_start" in words and "python" in words]
    return kill([dice.choice(found)]) if found else False


def server(victim: Victim, dice: random.Random) -> bool:
    """SIGKILL for the warm server and the stages in it."""
    return kill([*servers_of(victim.temporary)])


def make_alone(victim: Victim, dice: random.Random) -> bool:
    """SIGKILL for make: its stage goes on to its end, beside whatever the next make starts."""
    return kill([victim.make.pid])


def interrupt(victim: Victim, dice: random.Random) -> bool:
    """Ctrl-C: SIGINT for the whole group in front."""
    return kill([*processes_of(victim.make.pid)], signal.SIGINT)


def terminate(victim: Victim, dice: random.Random) -> bool:
    """SIGTERM for the whole group, as a shutdown sends it."""
    return kill([*processes_of(victim.make.pid)], signal.SIGTERM)


def full_disk(victim: Victim, dice: random.Random) -> bool:
    """A disk with hardly a byte left, until make has ended; the next one finds room again."""
    ballast = victim.runs.parent / "ballast"
    room = os.statvfs(victim.runs.parent)
    size = max(0, room.f_bavail * room.f_frsize - dice.randrange(HEADROOM))
    # The run writes meanwhile, so that the room may be less by now: then the disk is full already.
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, size))
    try:
        victim.make.wait(timeout=120)
    except subprocess.TimeoutExpired:
        kill([*processes_of(victim.make.pid)])
    ballast.unlink()
    return True


def _parent(number: int) -> int:
    """Returns the parent of a process, 0 where it is gone."""
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


BLOWS: dict[str, Callable[[Victim, random.Random], bool]] = {
    "group": group, "stage": stage, "client": client, "server": server, "make": make_alone, "interrupt": interrupt,
    "terminate": terminate, "full disk": full_disk,
}  # fmt: skip


def strike(victim: Victim, name: str, after: float, dice: random.Random) -> bool:
    """Waits so many seconds, then strikes; returns whether the blow met anything before make had ended."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if victim.make.poll() is not None:
            return False
        time.sleep(0.01)
    return BLOWS[name](victim, dice)
