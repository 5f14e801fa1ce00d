"""Processes without a process group: they meet, end together, and none outlives its launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.per_device import main, shares_of

HEAD = """
import os, sys, time
from pathlib import Path
import torch
from handbook_ext.policies.launch import begin
launch = begin()
out = Path(sys.argv[1])
"""


def launcher(folder: Path, body: str, processes: int = 3, stderr: IO[str] | int | None = None) -> subprocess.Popen[str]:
    """Starts a script in several processes."""
    script = folder / "script.py"
    script.write_text(HEAD + body)
    command = [sys.executable, "-m", "handbook_ext.core.per_device", "--processes", str(processes), str(script), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stderr=stderr, text=True)


def test_processes_meet_and_hear_the_first_one(tmp_path: Path) -> None:
    body = """
class Found:
    def finished(self): return launch.main and False
assert launch.processes == 3 and not torch.distributed.is_initialized()
assert launch.finished(Found()) is False
assert launch.told({"rank": launch.rank}) == {"rank": 0}
with launch.main_first():
    if not launch.main:
        assert (out / "first").exists()
    time.sleep(0.2 * launch.main)
    (out / ("first" if launch.main else f"other{launch.rank}")).touch()
launch.wait()
assert len(list(out.glob("other*"))) == 2
launch.wait()
(out / f"done{launch.rank}").touch()
"""
    assert launcher(tmp_path, body).wait(60) == 0
    assert len(list(tmp_path.glob("done*"))) == 3


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_one_that_dies_ends_the_others(tmp_path: Path, ending: str, code: int) -> None:
    """Also where they wait for it, as inside `main_first`."""
    body = f"""
(out / f"pid{{os.getpid()}}").touch()
while len(list(out.glob("pid*"))) < 3: time.sleep(0.01)
with launch.main_first():
    if launch.main: {ending}
    time.sleep(60)
"""
    process = launcher(tmp_path, body, stderr=subprocess.PIPE)
    started = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and time.monotonic() - started < 50  # Not the 60 of those that wait.
    how = "was ended by SIGKILL, as the kernel does where memory is short" if code == 137 else "ended with 3"
    assert f"error: process 0 of 3 {how}; the others were ended, run make again" in said
    assert_gone(tmp_path)


def test_a_users_mistake_is_told_once(tmp_path: Path) -> None:
    body = """
from handbook_ext.core.errors import UserError, run_main
class Found:
    def finished(self): raise UserError("this is wrong")
run_main(lambda argv: launch.finished(Found()))
"""
    process = launcher(tmp_path, body, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.count("error: ") == 1 and "error: this is wrong" in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_launcher(tmp_path: Path, how: signal.Signals) -> None:
    body = """
(out / f"pid{os.getpid()}").touch()
time.sleep(60)
"""
    process = launcher(tmp_path, body)
    while len(list(tmp_path.glob("pid*"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(30) != 0
    assert_gone(tmp_path)


def assert_gone(folder: Path, count: int = 3) -> None:
    """Fails where a process of the launch still runs after two seconds."""
    until = time.monotonic() + 2
    pids = [int(path.name.removeprefix("pid")) for path in folder.glob("pid*")]
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert len(pids) == count and not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Tells whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_devices_are_shared_out() -> None:
    assert shares_of(["0", "1", "2", "3"], 2, 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert shares_of(["GPU-a", "GPU-b"], 2, 1) == [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}]
    assert shares_of([], 2, 1) == [{}, {}]
    with pytest.raises(UserError, match="2 processes with 2 GPUs each need 4, and 3 are visible"):
        shares_of(["0", "1", "2"], 2, 2)


def nodes(folder: Path, body: str, count: int = 2) -> list[subprocess.Popen[str]]:
    """Starts the launchers of several nodes, here all on the loopback interface, with two processes each."""
    script = folder / "script.py"
    script.write_text(HEAD + body)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        store = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for node in range(count):
        words = ["--processes", "2", "--nodes", str(count), "--node-rank", str(node), "--store", store]
        command = [sys.executable, "-m", "handbook_ext.core.per_device", *words, str(script), str(folder)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return started


def test_the_launchers_of_two_nodes_finish_shards_together(tmp_path: Path) -> None:
    """The second node is the slower one: the store outlives its processes, which meet the others once more at the end."""
    body = """
from handbook_ext.core.shards import fill_shards, read_shards
def work(number):
    time.sleep(0.1 * launch.rank)
    return [{"number": number, "rank": launch.rank, "of": launch.processes}]
fill_shards(out / "shards", list(range(8)), work, rank=launch.rank, processes=launch.processes, progress=lambda mine: mine)
launch.wait()
if launch.main:
    assert [row["number"] for row in read_shards(out / "shards", 8)] == list(range(8))
    assert [row["rank"] for row in read_shards(out / "shards", 8)] == [0, 1, 2, 3] * 2
launch.wait()
time.sleep(0.5 * launch.rank)
launch.wait()
(out / f"done{launch.rank}").touch()
"""
    started = nodes(tmp_path, body)
    said = [process.communicate(timeout=90)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert len(list(tmp_path.glob("done*"))) == 4


@pytest.mark.parametrize("failing", [0, 3])
def test_a_process_that_dies_ends_those_of_the_other_node(tmp_path: Path, failing: int) -> None:
    body = f"""
(out / f"pid{{os.getpid()}}").touch()
while len(list(out.glob("pid*"))) < 4: time.sleep(0.01)
if launch.rank == {failing}: os.kill(os.getpid(), 9)
launch.wait()
"""
    started = nodes(tmp_path, body)
    said = [process.communicate(timeout=60)[1] for process in started]
    own = failing // 2
    assert started[own].returncode == 137 and f"error: process {failing} of 4 was ended by SIGKILL" in said[own]
    assert started[1 - own].returncode == 1 and "another node's processes failed" in said[1 - own]
    assert_gone(tmp_path, 4)


@pytest.mark.parametrize("words", [["--nodes", "2", "--node-rank", "2", "--store", "here:1"], ["--nodes", "2"]])
def test_nodes_that_could_not_meet_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="give --node-rank from 0 and below --nodes"):
        main(["--processes", "1", *words, "script.py"])
