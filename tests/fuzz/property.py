"""The property that every case has: it works, or raises UserError; within ten seconds; and leaves no file outside of RUNS."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from handbook_ext.core.errors import UserError
from tests.recipe_folder import ROOT

SECONDS = 10
CASES = int(os.environ.get("HANDBOOK_FUZZ_CASES", "60"))
"""Cases in all; `make fuzz CASES=500` sets it. They are the same on every machine, and more cases begin with the fewer ones."""


class Late(BaseException):
    """A case took too long."""


def share(part: float) -> int:
    """The cases of a test."""
    return max(2, round(part * CASES))


def make_folder(folder: Path) -> None:
    """Makes a working folder with a few recipes."""
    shutil.copytree(ROOT / "recipes" / "accelerate", folder / "recipes" / "accelerate")
    for name in ("mine", "tables"):
        (folder / "recipes" / name).mkdir()
    for path in ("tiny/base.yaml", "tiny/selm.yaml", "tiny/dpo.yaml", "smollm2/base.yaml"):
        (folder / "recipes" / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "recipes" / path, folder / "recipes" / path)


@contextlib.contextmanager
def held(folder: Path, runs: str = "runs") -> Iterator[list[str]]:
    """Yields a list that is empty until the block raises UserError, which is then its one entry; checks the rest."""
    before, said = tree(folder), list[str]()

    def late(number: int, frame: FrameType | None) -> None:
        raise Late(f"took more than {SECONDS} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield said
    except UserError as error:
        said.extend(map(str, error.args))
    except SystemExit as error:  # argparse
        assert error.code == 2, error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    remove_new(folder, runs, before)
    assert tree(folder) == before
    assert all(line for line in said)


def inside(runs: str) -> bool:
    """Tells whether RUNS is a folder of its own in the working folder, so that what lies elsewhere must stay as it is."""
    parts = Path(runs).parts
    return bool(parts) and not Path(runs).is_absolute() and ".." not in parts and len(os.fsencode(parts[0])) < 256


def remove_new(folder: Path, runs: str, before: dict[str, tuple[int, int]]) -> None:
    """Removes the folder of runs that a case has made."""
    first = Path(runs).parts[0] if inside(runs) else ""
    if first and first not in before and not (folder / first).is_symlink() and (folder / first).is_dir():
        shutil.rmtree(folder / first)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of a folder, and of the one that it lies in; folders have none."""
    found = {}
    for path in folder.parent.rglob("*"):
        stat = path.lstat()
        name = str(path.relative_to(folder.parent))
        found[name.removeprefix(f"{folder.name}/")] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found
