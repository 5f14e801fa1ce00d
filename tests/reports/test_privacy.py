"""What stays at home: paths, hosts, secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handbook_ext.reports.privacy import has_gaps, home_paths, secrets_in, without_paths

PATHS = [
    ("/home/me/data/train.jsonl", "<path>/train.jsonl"),
    ("/model", "<path>/model"),
    ("data.train=/home/me/my.pairs/train.jsonl", "data.train=<path>/train.jsonl"),
    ("~/checkpoints/a-1", "<path>/a-1"),
    ("file:///srv/x/y", "<path>/y"),
    (r"C:\Users\me\runs", "<path>/runs"),
    ("was made in /srv/a/b and /srv/c/d", "was made in <path>/b and <path>/d"),
]
KEPT = ["HuggingFaceH4/mistral-7b-sft-beta", "https://example.org/a/b.json", "hf://datasets/a/b/c.json",
        "../data/rows/train.jsonl", "and/or", "1/2/3", "</s>", "<path>/a", "runs/tiny-selm", "SELM tables 1/2"]  # fmt: skip


@pytest.mark.parametrize(("text", "kept"), PATHS)
def test_a_path_leaves_its_last_name(text: str, kept: str) -> None:
    assert without_paths({"a": [text], text: 1}) == {"a": [kept], kept: 1}
    assert has_gaps(without_paths([text])) and not has_gaps([text])
    assert without_paths(kept) == kept


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_path_of_this_machine_stays(text: str) -> None:
    assert without_paths({"a": text, text: 1}) == {"a": text, text: 1}


def test_texts_of_prompts_and_answers_stay_and_hosts_go() -> None:
    value = {
        "rows": [{"text": "/etc/passwd/x"}],
        "prompt": "/a/b",
        "judge": {"base_url": "http://me:pw@node17:8000/v1", "model": "m"},
    }
    kept = without_paths(value)
    assert kept == value | {"judge": {"base_url": "http://<host>/v1", "model": "m"}}
    assert has_gaps(kept) and not has_gaps({"rows": [{"text": "<path>/x"}]})


SECRETS = [
    ("hf_" + "a" * 34, "the Hugging Face hub"), ("sk-proj-" + "b" * 30, "OpenAI"), ("AKIA" + "C" * 16, "AWS"),
    ("ghp_" + "d" * 36, "GitHub"), ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
    ("https://me:secret@example.org/x", "password"),
]  # fmt: skip


@pytest.mark.parametrize(("secret", "words"), SECRETS)
def test_what_looks_like_a_secret_is_told_by_line_but_not_repeated(tmp_path: Path, secret: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + json.dumps({"text": f"take {secret} and go"}) + "\n")
    (said,) = secrets_in(path, {})
    assert said.startswith("rows.jsonl:2 ") and words in said and secret not in said


def test_values_of_the_environment_and_names_of_files_are_signs_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": "correct horse battery"}')
    (tmp_path / ".env").write_text("A=1")
    (tmp_path / "id_rsa").write_text("x")
    assert list(secrets_in(tmp_path / "a.json", {"MY_TOKEN": "correct horse battery", "HOME": "x"})) == [
        "a.json:1 holds the value of MY_TOKEN"
    ]
    assert [len(list(secrets_in(tmp_path / name, {}))) for name in (".env", "id_rsa", "a.json")] == [1, 1, 0]


def test_commits_and_hashes_are_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps({"commit": "a1" * 20, "sha256": "b2" * 32, "file": "tokenizer.json", "risk": "task-force-of-many-people-here"})
    )
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 10 + b"hf_" + b"a" * 34)
    assert [*secrets_in(tmp_path / "manifest.json", {}), *secrets_in(tmp_path / "model.safetensors", {})] == []


def test_a_folder_of_this_machine_is_found_in_a_text(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    assert home_paths(f"see {folder}/x", folder) == str(folder)
    assert home_paths("see /srv/x", folder, Path("/"), Path("/srv")) is None
