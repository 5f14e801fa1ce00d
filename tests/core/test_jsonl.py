"""Files that are written whole or not at all, whoever writes them."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handbook_ext.core.artifacts import remembered_hashes, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import Row, iter_jsonl, read_rows, replace_text, uncollected, write_rows


class Score(Row):
    """A row of one number and a text."""

    score: float
    text: str = ""


def refusal(path: Path, content: bytes, *, typed: bool) -> str:
    """The one line by which a file is refused."""
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        _ = read_rows(path, Score) if typed else list(iter_jsonl(path))
    return str(error.value)


BAD_LINES = {
    "not UTF-8": (b'{"text": "\xff\xfe"}', "not UTF-8 text (byte 0xff after 10 others)"),
    "half a character": (b'{"text": "\\ud800"}', "not valid text (\\ud800 is half of a character"),
    "nested": (b"[" * 100_000, "JSON that cannot be read (recursion limit"),
    "nested and closed": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON that cannot be read (recursion limit"),
    "a number of 5000 digits": (b'{"score": ' + b"9" * 5000 + b"}", "JSON that cannot be read (number out of range"),
    "a NUL byte": (b'{"text": "a\x00"}', "not valid JSON (Invalid control character at)"),
    "cut": (b'{"score": 1', "not valid JSON (Expecting ',' delimiter)"),
    "a list": (b"[1]", "a JSON object is needed, found list"),
}


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_is_no_json_object_is_named_with_what_is_wrong(name: str, typed: bool, tmp_path: Path) -> None:
    line, words = BAD_LINES[name]
    said = refusal(tmp_path / "rows.jsonl", b'{"score": 1}\n' + line + b'\n{"score": 2}\n', typed=typed)
    assert said.startswith(f"{tmp_path / 'rows.jsonl'}:2: {words}")
    assert len(said) < 300


def test_a_typed_row_is_refused_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert refusal(path, b'\n{"score": "high"}\n', typed=True).startswith(f"{path}:2: score: Input should be a valid number")
    assert refusal(path, b'{"text": "a"}', typed=True) == f"{path}:1: score: Field required; make the file again"
    assert "other: Extra inputs" in refusal(path, b'{"score": 1, "other": 2}', typed=True)


def test_lines_are_numbered_whichever_system_ended_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for end in ("\n", "\r\n", "\r"):
        # A separator of lines in Unicode, inside a text, ends none.
        text = end.join(['\ufeff{"score": 1}', "", '{"score": 2, "text": "a\u2028b\x85c\x0bd"}', '{"score": 3}'])
        path.write_bytes(text.replace("\x0b", "\\u000b").encode())
        assert [number for number, _ in iter_jsonl(path)] == [1, 3, 4]
        rows = read_rows(path, Score)
        assert [row.score for row in rows] == [1, 2, 3] and rows[1].text == "a\u2028b\x85c\x0bd"


@given(numbers=st.lists(st.floats(allow_nan=False, allow_subnormal=False), min_size=1, max_size=30), text=st.text())
def test_numbers_and_texts_survive_a_file_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float], text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_rows(path, [Score(score=number, text=text) for number in numbers])
    found = read_rows(path, Score)
    assert [row.score.hex() for row in found] == [number.hex() for number in numbers]
    assert {row.text for row in found} == {text}
    assert [row["score"].hex() for _, row in iter_jsonl(path)] == [number.hex() for number in numbers]


@settings(max_examples=50)
@given(number=st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_a_number_is_read_as_python_reads_it(tmp_path_factory: pytest.TempPathFactory, number: str) -> None:
    path = tmp_path_factory.getbasetemp() / "number.jsonl"
    path.write_text(f'{{"score": {number}}}\n')
    [(_, row)] = iter_jsonl(path)
    assert repr(row["score"]) == repr(json.loads(number))
    assert read_rows(path, Score)[0].score == float(number) or math.isnan(float(number))


def test_the_search_for_cycles_goes_on_after_rows_are_read(tmp_path: Path) -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    refusal(tmp_path / "rows.jsonl", b"{", typed=True)
    assert gc.isenabled()


def refuse(path: Path, target: Path) -> None:
    """As a rename where the disk is full."""
    raise OSError(28, "No space left on device")


def test_text_takes_the_place_of_a_file_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.mk"
    for text in ("a", "ä\n"):
        replace_text(path, text)
        assert path.read_bytes() == text.encode()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        replace_text(path, "c")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("run.mk", "ä\n")]


def test_a_cache_of_hashes_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_text("1")
    cache = tmp_path / "run" / ".hashes.json"
    assert remembered_hashes(cache)(tmp_path / "weights") == sha256_of(tmp_path / "weights")
    before = cache.read_text()
    (tmp_path / "weights").write_text("22")
    monkeypatch.setattr(Path, "replace", refuse)
    # It is only a cache: the file is read again, next time too.
    assert remembered_hashes(cache)(tmp_path / "weights") == sha256_of(tmp_path / "weights")
    assert [(each.name, each.read_text()) for each in cache.parent.iterdir()] == [(".hashes.json", before)]
