"""What two runs share: it is on disk once, and whoever edits it in one run does not change the other."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import current_hash
from handbook_ext.core.manifests import finished_manifest, manifest_path

FICLONE = 0x40049409
"""Linux's request for a copy that shares its blocks until one of both is written: Btrfs, XFS and others have it."""
WRITING = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def share_file(source: str, target: str) -> None:
    """Puts a file under a second name, with its time: as a clone where the file system has these, else as a read-only hard link.

    Both names of a link are one file, so an edit in one run would be one in the other: nobody may write to it any more. Deleting
    and making again take another file, and work as before. Where neither can be had, as with another user's file, it is copied.
    """
    if _cloned(source, target):
        return
    try:
        os.link(source, target)
        os.chmod(source, os.stat(source).st_mode & ~WRITING)
    except OSError:
        Path(target).unlink(missing_ok=True)
        shutil.copy2(source, target)


def sibling_of(run: Path, artifact: Path, key: str) -> tuple[Path, dict[str, Any]] | None:
    """Returns the artifact of another run that has a key, unchanged since it was made, with its manifest; None where none is."""
    inside = artifact.relative_to(run)
    for path in sorted(run.parent.glob(f"*/{manifest_path(inside)}")):
        sibling = run.parent / path.relative_to(run.parent).parts[0] / inside
        manifest = finished_manifest(sibling)
        if manifest is None or manifest["key"] != key or not sibling.exists():
            continue
        # The manifest alone does not suffice: somebody may have changed the artifact since.
        if current_hash(sibling, manifest["files"]) == manifest["sha256"]:
            return sibling, manifest
    return None


def _cloned(source: str, target: str) -> bool:
    """Returns whether a clone of the file is there now."""
    if sys.platform != "linux":
        return False
    try:
        with open(source, "rb") as read, open(target, "wb") as written:
            fcntl.ioctl(written.fileno(), FICLONE, read.fileno())
    except OSError:
        Path(target).unlink(missing_ok=True)
        return False
    shutil.copystat(source, target)
    return True
