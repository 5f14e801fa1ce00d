"""A script in the warm server behaves like one started afresh, and dies with its caller."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from handbook_ext.core.warm_start import _socket_path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere scripts are started afresh")
# A shell lets its background jobs, of which the tests may be one, ignore Ctrl-C: `env` undoes that.
COMMAND = ["env", "--default-signal=INT", sys.executable, "-m", "handbook_ext.core.warm_start"]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with a server of its own, which loads nothing but the standard library."""
    yield os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path), "HANDBOOK_WARM_LIBRARIES": "decimal"}


def start(script: Path, *arguments: str, environment: dict[str, str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(script), *arguments], env=environment, cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_script_has_its_callers_arguments_folder_environment_and_status(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text(
        "import os, sys\nprint(sys.argv[1:], os.getcwd(), os.environ['MINE'], os.getppid(), 'decimal' in sys.modules)\n"
        "print('odd', file=sys.stderr)\nsys.exit(int(sys.argv[1]))\n"
    )
    parents = set()
    for status in (0, 3):
        done = start(script, str(status), environment=environment | {"MINE": f"value {status}"}, folder=tmp_path)
        out, err = done.communicate(timeout=60)
        words = out.rsplit(maxsplit=2)
        assert (done.returncode, err) == (status, "odd\n")
        assert words[0] == f"['{status}'] {tmp_path} value {status}"
        assert words[2] == "True"
        parents.add(words[1])
    assert len(parents) == 1, "both came out of the same server"


def test_a_failure_shows_its_traceback(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text("raise RuntimeError('broken')\n")
    done = start(script, environment=environment, folder=tmp_path)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 1
    assert err.startswith("Traceback") and err.endswith("RuntimeError: broken\n")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl_c"])
def test_the_script_dies_with_its_caller(how: signal.Signals, environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "stay.py"
    script.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    caller = start(script, environment=environment, folder=tmp_path)
    assert caller.stdout is not None
    child = int(caller.stdout.readline())
    caller.send_signal(how)
    caller.wait(timeout=10)
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)
    assert caller.returncode == (-9 if how == signal.SIGKILL else 130)


def test_a_killed_script_is_told_to_its_caller_with_its_log_and_what_to_do(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "die.py"
    script.write_text("import os\nos.write(int(os.environ['HANDBOOK_CALLER']), b'log x/train.log\\n')\nos.kill(os.getpid(), 9)\n")
    done = start(script, "runs/x", environment=environment, folder=tmp_path)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 137
    assert err.startswith(f"error: {script} runs/x was killed") and err.count("\n") == 1
    assert "memory" in err and "repeat" in err and err.endswith("; log: x/train.log\n")


def test_without_the_server_the_script_is_started_afresh(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text("import sys\nprint('decimal' in sys.modules)\nsys.exit(4)\n")
    done = start(script, environment=environment | {"HANDBOOK_WARM": "0"}, folder=tmp_path)
    out, _ = done.communicate(timeout=60)
    assert (done.returncode, out) == (4, "False\n")


def untrusted(kind: str, tmp_path: Path) -> str:
    """A folder for temporary files in which no server can be had, or none be trusted."""
    if kind == "long":
        folder = tmp_path / ("x" * 120)
        folder.mkdir()
        return str(folder)
    place = tmp_path / f"handbook_ext-{os.getuid()}"
    if kind == "file":
        place.write_text("")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        place.chmod(0o777)
    return str(tmp_path)


@pytest.mark.parametrize("kind", ["file", "link", "open to all", "long"])
def test_where_no_server_can_be_trusted_the_script_runs_all_the_same(
    kind: str, environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "ran.py"
    script.write_text("import sys\nprint('decimal' in sys.modules)\nsys.exit(4)\n")
    done = start(script, environment=environment | {"TMPDIR": untrusted(kind, tmp_path)}, folder=tmp_path)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (4, "False\n"), err
    assert err.startswith("note: no warm start: ") and err.count("\n") == 1


def test_all_stages_of_a_call_of_make_say_once_that_there_is_no_warm_start(environment: dict[str, str], tmp_path: Path) -> None:
    script, progress = tmp_path / "ran.py", tmp_path / "goal.progress"
    script.write_text("")
    progress.write_text("")
    environment |= {"TMPDIR": untrusted("file", tmp_path), "HANDBOOK_PROGRESS": str(progress)}
    said = [start(script, environment=environment, folder=tmp_path).communicate(timeout=60)[1] for _ in range(2)]
    assert [text.count("note: ") for text in said] == [1, 0]


def test_a_caller_that_is_gone_before_its_script_starts_leaves_nothing_on_the_terminal(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script, terminal = tmp_path / "ran.py", tmp_path / "terminal"
    script.write_text("")
    assert start(script, environment=environment, folder=tmp_path).wait(timeout=60) == 0
    [place] = [path for path in (tmp_path / f"handbook_ext-{os.getuid()}").iterdir() if path.is_socket()]
    request = json.dumps({"argv": [str(script)], "folder": str(tmp_path), "environment": {}}).encode()
    with terminal.open("w") as stream, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(place))
        socket.send_fds(caller, [len(request).to_bytes(8)], [stream.fileno()] * 3)
        caller.sendall(request)
        caller.shutdown(socket.SHUT_RD)  # As one that was killed, but that its request is surely read.
    time.sleep(0.5)
    assert terminal.read_text() == ""
    assert start(script, environment=environment, folder=tmp_path).wait(timeout=60) == 0


def test_a_script_killed_while_it_draws_a_progress_bar_stops_no_other(environment: dict[str, str], tmp_path: Path) -> None:
    environment["HANDBOOK_WARM_LIBRARIES"] = "drawn"
    (tmp_path / "drawn.py").write_text("import tqdm.auto\nlist(tqdm.auto.tqdm(range(1)))\n")
    holds, draws = tmp_path / "holds.py", tmp_path / "draws.py"
    holds.write_text("import os, tqdm.auto\ntqdm.auto.tqdm.get_lock().acquire()\nos.kill(os.getpid(), 9)\n")
    draws.write_text("import tqdm.auto\nprint(sum(tqdm.auto.tqdm(range(3), disable=False)))\n")
    assert start(holds, environment=environment, folder=tmp_path).wait(timeout=60) == 137
    out, _ = start(draws, environment=environment, folder=tmp_path).communicate(timeout=60)
    assert out == "3\n"


def test_a_script_may_import_what_lies_beside_it_and_end_with_a_text(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/neighbour.py").write_text("word = 'this is wrong'\n")
    script = tmp_path / "own/ends.py"
    script.write_text("import sys, neighbour\nsys.exit(neighbour.word)\n")
    done = start(script, environment=environment, folder=tmp_path)
    assert done.communicate(timeout=60)[1] == "this is wrong\n"
    assert done.returncode == 1


def test_a_server_serves_one_environment_under_one_set_of_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child has the packages and limits of its server, not of its caller."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "ready").touch()
    before = _socket_path()
    assert _socket_path() == before
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, hard))
        assert _socket_path() != before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    os.utime(tmp_path / "ready", ns=(1, 1))
    assert _socket_path() != before


READ = [
    "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_NUM_THREADS", "MKLDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "ARROW_USER_SIMD_LEVEL", "OMP_NUM_THREADS", "KMP_AFFINITY", "GOMP_SPINCOUNT",
    "TORCH_LOGS", "PYTORCH_JIT", "LD_PRELOAD", "GLIBC_TUNABLES", "USE_TF",
]  # fmt: skip


def test_callers_whose_kernels_differ_have_servers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in READ:
        monkeypatch.delenv(name, raising=False)
    found = [_socket_path()]
    for name in READ:
        for value in ("1", "2"):
            monkeypatch.setenv(name, value)
            found.append(_socket_path())
        monkeypatch.delenv(name)
    assert len(set(found)) == len(found)


@pytest.mark.slow
def test_a_stage_has_the_kernels_of_its_caller_also_where_torch_chose_them_while_it_was_loaded(
    environment: dict[str, str], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "chooses.py").write_text("import torch\ntorch.backends.cpu.get_cpu_capability()\n")
    script = tmp_path / "say.py"
    script.write_text(
        "import os, sys\nprint('torch' in sys.modules, sys.modules['torch'].backends.cpu.get_cpu_capability(), os.getppid())\n"
    )
    own, said = torch.backends.cpu.get_cpu_capability(), []
    environment["HANDBOOK_WARM_LIBRARIES"] = "chooses"
    for value in ("default", own.lower(), "default"):
        done = start(script, environment=environment | {"ATEN_CPU_CAPABILITY": value}, folder=tmp_path)
        said.append(done.communicate(timeout=60)[0].split())
    assert [line[:2] for line in said] == [["True", "DEFAULT"], ["True", own], ["True", "DEFAULT"]]
    assert said[0][2] == said[2][2] != said[1][2], "the third came out of the server of the first"
