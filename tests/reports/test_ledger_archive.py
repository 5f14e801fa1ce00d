"""The file of a ledger: equal bytes for equal content, and what a stranger's file may not be."""

from __future__ import annotations

import io
import json
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbook_ext.core.errors import UserError
from handbook_ext.reports import ledger_archive
from handbook_ext.reports.ledger_archive import Ledger, archive_bytes, read_ledger

SMALL = Ledger(
    "tiny-selm",
    {"iter1/eval.json": b'{"a": 1}', "iter1/pairs.jsonl": b'{"a": 1}\n{"b": "\xe2\x80\xa8"}\n', "report.yaml": b"a: [1, 2]\n"},
)
NAMES = st.from_regex(r"\A([a-z][a-z0-9_]{0,8}/){0,3}[a-z][a-z0-9_]{0,8}\.json\Z")


@given(
    st.dictionaries(NAMES.filter(lambda name: name != "ledger.json"), st.integers().map(lambda n: str(n).encode()), max_size=6)
)
def test_a_ledger_is_read_back_as_it_was_and_equal_content_has_equal_bytes(files: dict[str, bytes]) -> None:
    ledger = Ledger("a-run+train.beta-0.5", files)
    content = archive_bytes(ledger)
    assert content == archive_bytes(Ledger(ledger.run, dict(reversed(files.items()))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.ledger.zip")
        path.write_bytes(content)
        assert read_ledger(path) == ledger
        with zipfile.ZipFile(path) as archive:  # No clock, no umask, no system.
            assert {(each.date_time, each.create_system, each.external_attr >> 16) for each in archive.infolist()} == {
                ((1980, 1, 1, 0, 0, 0), 3, stat.S_IFREG | 0o644)
            }


def rewritten(change: Callable[[zipfile.ZipFile], None], leave_out: str | None = None) -> bytes:
    """The small ledger's file with something more in it."""
    out = io.BytesIO(archive_bytes(SMALL))
    if leave_out is not None:
        before = zipfile.ZipFile(out)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name in before.namelist():
                if name != leave_out:
                    archive.writestr(name, before.read(name))
    with zipfile.ZipFile(out, "a") as archive:
        change(archive)
    return out.getvalue()


def adding(name: str, content: bytes = b"{}", mode: int = 0, packing: int = zipfile.ZIP_STORED) -> bytes:
    def change(archive: zipfile.ZipFile) -> None:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, content, packing)

    return rewritten(change)


def unsafe(content: bytes, name: str = "iter1/eval.json") -> bytes:
    """A ledger with a file whose content the index describes rightly."""
    return archive_bytes(Ledger("tiny-selm", {**SMALL.files, name: content}))


BAD = {
    "parent": (adding("../evil.json"), "is not the name"),
    "inner parent": (adding("iter1/../../evil.json"), "is not the name"),
    "absolute": (adding("/etc/evil.json"), "is not the name"),
    "backslash": (adding("iter1\\evil.json"), "is not the name"),
    "hidden": (adding("iter1/.evil.json"), "is not the name"),
    "deep": (adding("a/b/c/d/e.json"), "is not the name"),
    "folder": (adding("iter1/"), "is not the name"),
    "code": (adding("iter1/evil.py"), "is not the name"),
    "pickle by name": (adding("iter1/evil.pkl"), "is not the name"),
    "link": (adding("iter1/evil.json", b"/etc/passwd", stat.S_IFLNK | 0o777), "link or device"),
    "pipe": (adding("iter1/evil.json", b"{}", stat.S_IFIFO | 0o666), "link or device"),
    "another packing": (adding("iter1/more.json", packing=zipfile.ZIP_BZIP2), "packed in another way"),
    "twice": (adding("iter1/eval.json"), "there twice"),
    "not in the index": (adding("iter1/more.json"), "does not stand in the index"),
    "missing": (rewritten(lambda archive: None, "report.yaml"), "is not there"),
    "no index": (rewritten(lambda archive: None, "ledger.json"), "no readable ledger.json"),
    "zip inside": (unsafe(b"PK\x03\x04"), "archive or a pickle"),
    "gzip inside": (unsafe(b"\x1f\x8b\x08"), "archive or a pickle"),
    "pickle inside": (unsafe(b"\x80\x04K\x01."), "archive or a pickle"),
    "no JSON": (unsafe(b"{"), "no JSON"),
    "deep JSON": (unsafe(b"[" * 100_000), "no JSON"),
    "no UTF-8": (unsafe(b'"\xff"'), "no JSON"),
    "a row": (unsafe(b'{"a": 1}\nx\n', "iter1/pairs.jsonl"), "no JSONL"),
    "references": (unsafe(b"a: &x [1]\nb: [*x, *x]\n", "report.yaml"), "no YAML"),
    "tags": (unsafe(b"a: !!python/object/apply:os.system [ls]\n", "report.yaml"), "no YAML"),
    "no zip": (b"not a zip", "cannot be read"),
    "empty": (b"", "cannot be read"),
    "cut": (archive_bytes(SMALL)[:-30], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_ledger_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    path = tmp_path / "x.ledger.zip"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        read_ledger(path)
    assert all("\n" not in str(line) for line in refused.value.args)
    assert list(tmp_path.iterdir()) == [path]


def test_a_flipped_byte_of_the_content_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive_bytes(SMALL))) as before, zipfile.ZipFile(out, "w") as archive:
        for name in before.namelist():
            archive.writestr(name, b'{"a": 2}' if name == "iter1/eval.json" else before.read(name))
    (tmp_path / "x.ledger.zip").write_bytes(out.getvalue())
    with pytest.raises(UserError, match=r"iter1/eval\.json is not what the index says"):
        read_ledger(tmp_path / "x.ledger.zip")


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    content = bytearray(archive_bytes(SMALL))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.getinfo("iter1/eval.json")
    # Behind the entry's header of 30 bytes and its name: a kind of block that deflate does not have.
    content[entry.header_offset + 30 + len(entry.filename)] = 0xFF
    (tmp_path / "x.ledger.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a ledger .*decompressing"):
        read_ledger(tmp_path / "x.ledger.zip")


@pytest.mark.parametrize(("limit", "value"), [("MOST_BYTES", 1000), ("MOST_TOGETHER", 1500), ("MOST_MEMBERS", 3)])
def test_a_member_that_unpacks_to_more_than_a_ledger_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    path = tmp_path / "x.ledger.zip"
    path.write_bytes(unsafe(json.dumps("0" * 2000).encode()))
    assert path.stat().st_size < 1500
    assert read_ledger(path)
    monkeypatch.setattr(ledger_archive, limit, value)
    asked, read = [], zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or read(self, n))
    with pytest.raises(UserError, match=r"larger than|more than"):
        read_ledger(path)
    assert all(0 < n <= ledger_archive.MOST_BYTES + 1 for n in asked)  # Never all of it, whatever size it claims.


def test_another_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.ledger.zip").write_bytes(archive_bytes(SMALL))
    monkeypatch.setattr(ledger_archive, "FORMAT", 2)
    with pytest.raises(UserError, match="of format 1, and this version reads 2"):
        read_ledger(tmp_path / "x.ledger.zip")
