"""What cannot be written is one line that says why and what to do, whichever library met it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError, _explain, stage_folder

TORCH = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
RUST = "Error while serializing: I/O error: {} (os error {})"


def said(error: BaseException, capfd: pytest.CaptureFixture[str]) -> str:
    """What a script prints that such an error ends."""
    _explain(type(error), error, None)
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: the disk is full; free some space, or put the runs on"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the run folder: the disk quota is used up; free some"),
        (OSError(errno.EFBIG, "File too large", "a/b"), "a/b: a file is larger than this shell or file system allows; raise"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: the file system is read-only; mount it for writing"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: permission is denied; make it yours"),
        (OSError(errno.EIO, "Input/output error", "a/b"), "a/b: the disk has failed"),
        (RuntimeError(RUST.format("No space left on device", 28)), "the run folder: the disk is full"),
        (RuntimeError(RUST.format("File too large", 27)), "a file is larger than"),
        (RuntimeError(RUST.format("Read-only file system", 30)), "the file system is read-only"),
        (OSError(RUST.format("No space left on device", 28)), "the run folder: the disk is full"),
        (RuntimeError(TORCH), "a file could not be written whole: the disk is full, or a quota or"),
        (RuntimeError("basic_ios::clear: iostream error"), "a file could not be written whole"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "a file could not be written whole"),
    ],
)
def test_what_cannot_be_written_is_one_line(error: Exception, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    line = said(error, capfd)
    assert line.startswith("error: ") and line.count("\n") == 1 and words in line
    assert line.endswith(", then repeat the command: finished work is kept\n")


def test_a_reason_that_a_library_has_wrapped_is_found_and_the_place_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "runs/x/optimizer.pt")
        except OSError:
            raise RuntimeError(TORCH)  # noqa: B904 - as torch does, in closing its archive
    except RuntimeError as error:
        assert said(error, capfd).startswith("error: runs/x/optimizer.pt: the disk is full; ")


def test_a_reason_that_a_library_names_as_the_cause_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("a tracker failed")
    error.__cause__ = OSError(errno.EROFS, "Read-only file system", "a/b")
    assert said(error, capfd).startswith("error: a/b: the file system is read-only; ")


@pytest.mark.parametrize("words", [[], ["--help"], ["runs/a", "runs/b"]])
def test_a_stage_is_given_one_folder(words: list[str]) -> None:
    with pytest.raises(UserError, match="needs one folder: the run's"):
        stage_folder(words)


def test_our_own_faults_keep_their_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    assert said(KeyError("a"), capfd) == "KeyError: 'a'\n"
    assert "FileNotFoundError" in said(FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), capfd)


SAVING = """
import resource, subprocess, sys
import torch
from safetensors.torch import save_file
from handbook_ext.core.errors import _explain

folder, prepare = sys.argv[1:]
exec(prepare)
for write in (torch.save, save_file):
    try:
        write({"w": torch.ones(100_000)}, folder + "/" + write.__name__)
    except Exception as error:
        _explain(type(error), error, None)
"""
LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"


def saved_in(folder: Path, prepare: str = "") -> list[str]:
    """What is said where weights are saved by torch, and by safetensors, in a folder."""
    command = [sys.executable, "-c", SAVING, str(folder), prepare]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stderr.splitlines()


def test_a_limit_on_the_size_of_files_is_told_by_what_writes_weights(tmp_path: Path) -> None:
    line = f"error: {tmp_path}: a file is larger than this shell or file system allows; raise the limit (ulimit -f)"
    lines = saved_in(tmp_path, LIMIT)
    assert len(lines) == 2 and all(each.startswith(line) for each in lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_by_what_writes_weights(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a tmpfs")
    try:
        full, others = saved_in(tmp_path), saved_in(tmp_path, f"subprocess.run(['mount', '-o', 'remount,ro', '{tmp_path}'])")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert len(full) == len(others) == 2
    assert all(each.startswith(f"error: {tmp_path}: the disk is full; free some space") for each in full)
    assert all(each.startswith(f"error: {tmp_path}: the file system is read-only; mount it") for each in others)
