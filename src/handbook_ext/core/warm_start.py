"""Runs a script in a process that has the heavy libraries loaded: `python -m handbook_ext.core.warm_start scripts/x.py args`.

Loading torch and transformers takes longer than most stages of a small run. The first stage therefore starts a
server that has imported them, but no module of this project; it forks one child per script and exits after a minute without
work. The child has the caller's folder, environment and streams, and is killed when its caller ends. Elsewhere than on Linux,
with HANDBOOK_WARM=0, and wherever a server cannot be had or trusted, the script is started afresh.
"""

from __future__ import annotations

import signal

# A Ctrl-C while the rest is imported ends the caller without a traceback.
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import resource
import runpy
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

LIBRARIES = "transformers.trainer transformers.models.mistral.modeling_mistral trl.trainer.sft_trainer datasets"
# Prefixes of variables that the libraries, or the loader under them, read while they are imported: each set of values has a
# server of its own, since a forked child cannot have them read again. The first two lines decide which kernels compute, and so
# the last bit of what comes out.
READ_WHILE_LOADING = (
    "ATEN_", "MKL_", "MKLDNN_", "DNNL_", "ONEDNN_", "OPENBLAS_", "NPY_", "ARROW_", "OMP_", "KMP_", "GOMP_",
    "TORCH", "PYTORCH_", "CUDA", "LD_", "GLIBC_", "SCIPY_", "USE_",
    "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "ACCELERATE_", "PYTHON", "HANDBOOK_WARM", "XDG_", "HOME",
)  # fmt: skip
IDLE_SECONDS = 60
LENGTH, ATTEMPTS = 8, 2
STARTED = b"started"
KILLED = 137
CALLER = "HANDBOOK_CALLER"  # As core/console.py has it, which tells the caller where the log lies.


def main(argv: list[str]) -> int:
    """Runs the script named first, with the arguments that follow; returns its exit status."""
    if argv[0] == "--serve":
        serve(socket.socket(fileno=int(argv[1])))
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if sys.platform == "linux" and os.environ.get("HANDBOOK_WARM") != "0":
            status = _run_warm(argv)
            if status is not None:
                return status
        os.execv(sys.executable, [sys.executable, *argv])  # noqa: S606 - no shell, and our own arguments
    except KeyboardInterrupt:  # Closing the connection has ended the child.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _say("interrupted; finished work is kept; the same command resumes from it", "interrupted")
        return 128 + signal.SIGINT


def _run_warm(argv: list[str]) -> int | None:
    """Returns the exit status of the script, run by the server; None, with a line that says why, where no server runs it."""
    request = json.dumps({"argv": argv, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    try:
        for _ in range(ATTEMPTS):
            with contextlib.suppress(ConnectionError), _connected() as connection:
                socket.send_fds(connection, [len(request).to_bytes(LENGTH)], [0, 1, 2])
                connection.sendall(request)
                if connection.recv(len(STARTED)):
                    return _status(connection, argv)
            # The server has exited: it was idle for a minute just now, or it cannot import the libraries.
        why = f"its server has ended while it started; see {_socket_path().with_suffix('.log')}"
    except OSError as error:
        why = f"{error.filename or 'its socket'}: {error.strerror}" if error.strerror else str(error)
    _say(f"note: no warm start: {why}; each stage loads its libraries itself", "cold")
    return None


def _status(connection: socket.socket, argv: list[str]) -> int:
    """Returns the exit status of the script once it has ended; says what there is to say of one that was killed."""
    told = b""
    with contextlib.suppress(ConnectionError):  # Not to be tried again: the script has run.
        while part := connection.recv(4096):
            told += part
    lines = dict(line.split(" ", 1) for line in told.decode(errors="replace").splitlines() if " " in line)
    if "ended" in lines:
        return int(lines["ended"])
    log = f"; log: {lines['log']}" if "log" in lines else ""
    _say(
        f"error: {' '.join(argv)} was killed, as the kernel does where memory is short; repeat the command, which goes on from "
        f"what is finished, with smaller micro-batches (batch_size, per_device_train_batch_size) if it was memory{log}"
    )
    return KILLED


def _say(line: str, once: str | None = None) -> None:
    """Writes a line; one that all stages of a call of make would write is written by the first of them."""
    from handbook_ext.core.goal_progress import first_to_note  # noqa: PLC0415 - the server imports nothing of this project

    if once is None or first_to_note(once):
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{clear}{line}\n")
        sys.stderr.flush()


def _connected() -> socket.socket:
    """Returns a connection to the server, which is started where there is none; its socket exists before it does."""
    socket_path = _socket_path()
    connection = socket.socket(socket.AF_UNIX)
    # Of two stages that start at once, one starts the server, and the other then connects to it.
    with socket_path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(str(socket_path))
        except (ConnectionRefusedError, FileNotFoundError):
            socket_path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(socket_path))
                listener.listen()
                command = [sys.executable, "-m", "handbook_ext.core.warm_start", "--serve", str(listener.fileno())]
                subprocess.Popen(
                    command, pass_fds=[listener.fileno()], start_new_session=True, cwd="/",
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=socket_path.with_suffix(".log").open("w"),
                )  # fmt: skip
            # It is bound already, so this succeeds at once; the request waits in its queue until the libraries are imported.
            connection.connect(str(socket_path))
    return connection


def _socket_path() -> Path:
    """Returns where the server for this interpreter and environment listens, in a folder that only this user can read."""
    seen = {name: value for name, value in os.environ.items() if name.startswith(READ_WHILE_LOADING)}
    # What a child inherits from the server, not from its caller.
    limits = [resource.getrlimit(each) for each in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)]
    inherited = [sorted(os.sched_getaffinity(0)), os.nice(0), limits]
    with contextlib.suppress(OSError):  # No /proc: then nothing tells groups apart.
        inherited.append(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    environment = Path(sys.prefix, "ready")
    # Packages installed since would not be seen: a server that has imported the old ones must not serve.
    installed = environment.stat().st_mtime_ns if environment.is_file() else 0
    name = hashlib.sha256(json.dumps([sys.executable, installed, seen, inherited], sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"handbook_ext-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Another user who made the folder first could listen in it, and requests carry the whole environment.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone (mode 700); delete it")
    return folder / name


def serve(listener: socket.socket) -> None:
    """Loads the libraries, then forks a child for every request until a minute passes without one and none is at work."""
    for name in os.environ.get("HANDBOOK_WARM_LIBRARIES", LIBRARIES).split():
        importlib.import_module(name)
    private_progress_locks()
    listener.settimeout(IDLE_SECONDS)
    children: set[int] = set()
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            children = {pid for pid in children if os.waitpid(pid, os.WNOHANG) == (0, 0)}
            if children:
                continue
            return
        children = {pid for pid in children if os.waitpid(pid, os.WNOHANG) == (0, 0)}
        # The server only imports and never computes, so no thread holds a lock, which the fork would copy as locked for good.
        child = os.fork()
        if child == 0:
            listener.close()
            _become(connection)
        connection.close()
        children.add(child)


def private_progress_locks() -> None:
    """Gives tqdm a lock per process: its own is shared by all forks, and one killed while it holds it would stop the others."""
    if "tqdm" in sys.modules:
        import tqdm.auto  # noqa: PLC0415 - loaded only by those who use it
        import tqdm.std  # noqa: PLC0415

        for bar in (tqdm.std.tqdm, tqdm.auto.tqdm):
            bar.set_lock(threading.RLock())


def _become(connection: socket.socket) -> NoReturn:
    """Runs the requested script in this process, and ends it."""
    connection.settimeout(None)
    try:
        length, streams, _, _ = socket.recv_fds(connection, LENGTH, 3)
        with connection.makefile("rb") as rest:
            request = json.loads(rest.read(int.from_bytes(length)))
    except (OSError, ValueError):  # The caller has ended meanwhile.
        os._exit(1)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # From here on the kernel kills this process when the caller exits. The caller sends nothing more, so the only event on the
    # connection is its end; F_SETSIG turns the signal of that event, SIGIO, into one that needs no handler and cannot be missed
    # while a library computes.
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    try:
        connection.send(STARTED)
        os.chdir(request["folder"])
    except OSError:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"] | {CALLER: str(connection.fileno())})
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
        if isinstance(done.code, str):
            sys.stderr.write(done.code + "\n")
    except BaseException:  # noqa: BLE001 - as an interpreter would
        sys.excepthook(*sys.exc_info())
        status = 1
    for written in (sys.stdout, sys.stderr):
        try:
            written.flush()
        except OSError:  # A log on a full disk, which the script has told of.
            status = status or 1
    with contextlib.suppress(OSError):
        connection.send(f"ended {status}\n".encode())
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
