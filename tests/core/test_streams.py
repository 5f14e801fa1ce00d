"""Closed streams and readers that have ended: one line at most, and never another file in the place of a stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW = f'"{sys.executable}" {ROOT}/scripts/'


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command of bash."""
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_number_of_a_closed_stream_is_given_to_no_other_file(tmp_path: Path) -> None:
    script = tmp_path / "closed.py"
    script.write_text(
        "import sys; sys.argv = ['-m']\n"
        "import handbook_ext\n"
        f"mine = open({str(tmp_path / 'mine')!r}, 'w')\n"
        "print('lost')\n"
        "mine.write(str(mine.fileno())); mine.close()\n"
    )
    done = shell(f'"{sys.executable}" {script} <&- >&-')
    assert (done.returncode, done.stderr) == (0, "")
    assert int((tmp_path / "mine").read_text()) > 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_prints_ends_well_with_a_stream_closed(closed: str) -> None:
    done = shell(f"{SHOW}resolve_recipe.py tiny-dpo --show iter1 {closed}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_ends_first_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "much.py"
    script.write_text(
        "import sys\nfrom handbook_ext.core.errors import run_main\n"
        "def main(argv):\n    for each in range(100_000): print(each, flush=True)\nrun_main(main)\n"
    )
    done = shell(f'"{sys.executable}" {script} | head -1; exit ${{PIPESTATUS[0]}}')
    assert (done.returncode, done.stdout) == (1, "0\n")
    assert done.stderr == "error: whoever read what is printed here has ended; repeat the command to see the rest\n"
