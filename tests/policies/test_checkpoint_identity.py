"""What tells a checkpoint from another: its files by where they lie, its template, and the launch whose training it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handbook_ext.policies.launch import Launch
from handbook_ext.policies.models import external_checkpoint_hashes
from handbook_ext.recipes.settings import ModelSettings


def checkpoint(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in {"model.safetensors": "w", "config.json": "{}", **files}.items():
        (folder / name).write_text(text)
    return folder


def test_an_adapter_and_a_base_with_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    checkpoint(tmp_path / "b/final", **{"tokenizer.json": "base"})
    config = f'{{"base_model_name_or_path": "{tmp_path}/b/final", "peft_type": "LORA"}}'
    files = {"adapter_config.json": config, "adapter_model.safetensors": "w", "tokenizer.json": "own"}
    adapter = checkpoint(tmp_path / "a/final", **files)
    settings = ModelSettings(name_or_path=str(adapter), dtype="float32")
    before = external_checkpoint_hashes(str(adapter), settings)
    (adapter / "tokenizer.json").write_text("another")
    after = external_checkpoint_hashes(str(adapter), settings)
    assert {name for name in before if before[name] != after[name]} == {"tokenizer.json"}


def test_a_template_is_hashed_when_a_stage_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, template = checkpoint(tmp_path / "start"), tmp_path / "own.jinja"
    template.write_text("1")
    settings = ModelSettings(name_or_path=str(folder), chat_template=str(template))
    before = external_checkpoint_hashes(str(folder), settings)
    template.write_text("2")
    after = external_checkpoint_hashes(str(folder), settings)
    assert before.keys() == after.keys() and before["chat_template"] != after["chat_template"]
    Path("zephyr").write_text("a file that is called like a template of this project")
    named = external_checkpoint_hashes(str(folder), ModelSettings(name_or_path=str(folder), chat_template="zephyr"))
    assert "chat_template" not in named


@pytest.mark.parametrize(
    ("variable", "processes", "folder"),
    [
        ("", 1, "checkpoints"),
        ("", 2, "checkpoints"),
        ("FSDP", 2, "checkpoints-fsdp"),
        ("DEEPSPEED", 8, "checkpoints-zero3-8"),
    ],
)
def test_training_resumes_only_from_checkpoints_that_its_launch_reads_whole(
    monkeypatch: pytest.MonkeyPatch, variable: str, processes: int, folder: str
) -> None:
    if variable:
        monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert Launch(0, processes, torch.device("cpu")).checkpoints == folder
