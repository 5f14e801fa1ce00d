"""accelerate's launcher, whose failures are one line: a mistake of any process, a signal, a configuration of one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workspace import ROOT

MISTAKE = """
import os, sys, time
from handbook_ext.core.errors import UserError, run_main
def main(argv):
    if os.environ.get("RANK", "0") == argv[0]:
        raise UserError("this is wrong")
    time.sleep(30)
run_main(main)
"""
SLEEP = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


def launched(launch: str, script: Path, *words: str) -> subprocess.Popen[str]:
    """Starts a script under a launch."""
    config = str(ROOT / "recipes" / "accelerate" / f"{launch}.yaml")
    return subprocess.Popen(
        [sys.executable, "-m", "handbook_ext.core.accelerated", "--config_file", config, str(script), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ends(pid: int) -> bool:
    """Whether a process is gone within ten seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("launch", "rank"), [("cpu", "0"), ("ddp-cpu", "0"), ("ddp-cpu", "1")])
def test_a_mistake_that_one_process_meets_is_told_once(tmp_path: Path, launch: str, rank: str) -> None:
    (tmp_path / "script.py").write_text(MISTAKE)
    process = launched(launch, tmp_path / "script.py", rank)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert said.count("error: ") == 1 and "error: this is wrong\n" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("launch", ["cpu", "ddp-cpu"])
def test_no_process_outlives_a_launcher_that_is_ended(tmp_path: Path, launch: str) -> None:
    (tmp_path / "script.py").write_text(SLEEP)
    process, note = launched(launch, tmp_path / "script.py", str(tmp_path / "pid")), tmp_path / "pid"
    while not note.is_file() or not note.read_text():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert ends(int(note.read_text()))


DIES = """
import os, sys
from pathlib import Path
from handbook_ext.core import console
from handbook_ext.core.errors import run_main
def main(argv):
    console.log_to(Path(argv[0]))
    if os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
run_main(main)
"""


@pytest.mark.parametrize("launch", ["cpu", "ddp-cpu"])
def test_a_killed_process_is_told_with_its_log(tmp_path: Path, launch: str) -> None:
    (tmp_path / "script.py").write_text(DIES)
    process = launched(launch, tmp_path / "script.py", str(tmp_path / "train.log"))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 137 and said.count("error: ") == 1, said
    assert "SIGKILL, as the kernel does where memory is short" in said and f"log: {tmp_path / 'train.log'}\n" in said


def test_another_training_on_the_machine_may_have_the_usual_port(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os, sys\nsys.stderr.write(os.environ['MASTER_PORT'] + ' ')\n")
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 29500))
            taken.listen()
        except OSError:  # Something else has it.
            pass
        _, said = launched("ddp-cpu", tmp_path / "script.py").communicate(timeout=120)
    assert "already in use" not in said and "29500" not in said
