"""The file of a ledger: a zip of plain text with an index of hashes; equal content has equal bytes, and reading trusts nothing.

A ledger comes from a stranger. Its members are read one by one, up to a limit, never extracted by the names that they claim, and
only those are taken that are called like a file of a run; nothing in it is code, an archive or a pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import replace_bytes

SUFFIX = ".ledger.zip"
INDEX = "ledger.json"
FORMAT = 1

MOST_MEMBERS = 5_000
MOST_BYTES = 256 << 20  # Of a member, unpacked.
MOST_TOGETHER = 2 << 30  # Of all members, unpacked.
MOST_SETTINGS = 1 << 20  # Of a settings file.
_NAME = re.compile(r"(?:[A-Za-z0-9][\w.+@,-]*/){0,3}[A-Za-z0-9][\w.+@,-]*\.(?:jsonl|json|yaml)")
_TIME = (1980, 1, 1, 0, 0, 0)  # The first that a zip can state.
# The first bytes of zip, gzip, bzip2, xz, zstd, 7z, rar and a pickle of protocol 2 and later.
_PACKED = (b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!", b"\x80")


@dataclass(frozen=True)
class Ledger:
    """What a ledger holds: the run that its index names, and the content of each file by its name in the run's folder."""

    run: str
    files: dict[str, bytes]

    @property
    def size(self) -> int:
        """Returns the bytes of all files."""
        return sum(map(len, self.files.values()))


def archive_bytes(ledger: Ledger) -> bytes:
    """Returns the file of a ledger, with its index: equal content gives equal bytes, whatever the clock and the file system."""
    about = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in sorted(ledger.files.items())
    }
    index = json.dumps({"format": FORMAT, "run": ledger.run, "files": about}, indent=1).encode() + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in {INDEX: index, **dict(sorted(ledger.files.items()))}.items():
            entry = zipfile.ZipInfo(name, _TIME)
            # Said here and not left to the platform: these two bytes differ between systems.
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=6)
    return out.getvalue()


def write_ledger(path: Path, content: bytes) -> None:
    """Puts the file of a ledger in its place, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, content)


def read_ledger(path: Path) -> Ledger:
    """Returns the content of a ledger whose files are those of its index, hash by hash.

    Raises UserError, a line for each fault, for what is no ledger: a broken zip, a name that leads out of the folder or is no
    file of a run, a link, a member that is too large, packed or encrypted, a file that the index lacks or describes otherwise.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            files = _members(path, archive)
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as a ledger ({error or type(error).__name__}); pack the run again") from None
    run, about = _index(path, files.pop(INDEX, None))
    faults = [f"{path}: {fault}" for fault in _faults(files, about)]
    if faults:
        raise UserError(*faults)
    return Ledger(run, files)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Returns the content of each member by name; raises UserError for the first that a ledger cannot have."""
    entries = archive.infolist()
    if len(entries) > MOST_MEMBERS:
        raise UserError(f"{path}: has {len(entries)} members, more than the {MOST_MEMBERS} of a ledger")
    files: dict[str, bytes] = {}
    together = 0
    for entry in entries:
        where, kind = f"{path}: {entry.filename!r}", stat.S_IFMT(entry.external_attr >> 16)
        # The name as the archive spells it: ZipInfo has cut it at a zero byte and turned backslashes on other systems.
        if not _NAME.fullmatch(entry.filename) or entry.orig_filename != entry.filename:
            raise UserError(f"{where} is not the name of a run's .json, .jsonl or .yaml file, inside its folder")
        if kind not in (0, stat.S_IFREG):
            raise UserError(f"{where} is a link or device; a ledger has plain files alone")
        if entry.flag_bits & 0x1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{where} is encrypted, or packed in another way than a ledger is")
        if entry.filename in files:
            raise UserError(f"{where} is there twice")
        most = min(MOST_SETTINGS if entry.filename.endswith(".yaml") else MOST_BYTES, MOST_TOGETHER - together)
        with archive.open(entry) as stream:
            # One byte more than allowed is read, whatever size the archive states.
            content = stream.read(most + 1)
        if len(content) > most:
            raise UserError(f"{where} is larger than the {most} bytes that are left for it")
        if content.startswith(_PACKED):
            raise UserError(f"{where} is an archive or a pickle itself; a ledger has plain text alone")
        together += len(content)
        files[entry.filename] = content
    return files


def _index(path: Path, content: bytes | None) -> tuple[str, dict[str, Any]]:
    """Returns the run's name and the files as the index describes them."""
    try:
        index = json.loads(content or b"")
        version, run, about = index["format"], index["run"], index["files"]
        if not isinstance(run, str) or not re.fullmatch(r"\w[\w.+,-]*", run) or not isinstance(about, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path}: has no readable {INDEX}, so it is no ledger; pack the run again") from None
    if version != FORMAT:
        raise UserError(f"{path}: is a ledger of format {version}, and this version reads {FORMAT}; use the one that packed it")
    return run, about


def _faults(files: Mapping[str, bytes], about: Mapping[str, Any]) -> Iterator[str]:
    """Yields in what the files differ from the index, and which content is not what a name says."""
    yield from (f"{name} stands in the index, and is not there" for name in sorted(about.keys() - files.keys()))
    yield from (f"{name} is there, and does not stand in the index" for name in sorted(files.keys() - about.keys()))
    for name in sorted(files.keys() & about.keys()):
        content, stated = files[name], about[name]
        found = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        if stated != found:
            yield f"{name} is not what the index says (sha256 {found['sha256'][:12]}, {found['size']} bytes)"
        elif not _plain(name, content):
            yield f"{name} is no {name.rpartition('.')[2].upper()} in UTF-8"


def _plain(name: str, content: bytes) -> bool:
    """Tells whether a file is what its name says: UTF-8, and JSON, a line of it each, or YAML without references."""
    try:
        text = content.decode("utf-8")
        if name.endswith(".yaml"):
            # A few references to references would stand for more than any memory holds, once something walks through them.
            tokens = yaml.scan(text, Loader=yaml.CSafeLoader)
            return not any(isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken) for token in tokens)
        # Newlines alone part rows: a text may hold other letters that Python takes for the end of a line.
        for line in filter(str.strip, text.split("\n")) if name.endswith(".jsonl") else [text]:
            json.loads(line)
    except (ValueError, RecursionError, yaml.YAMLError):
        return False
    return True
