"""What a kind of launch changes: the folder of checkpoints, the numeric type of weights, and what a manifest records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from handbook_ext.core.provenance import launch_facts
from handbook_ext.policies.launch import Launch
from handbook_ext.recipes.settings import LoraSettings, ModelSettings
from handbook_ext.training.checkpoints import COMPLETE, MarkComplete, resume_point

ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
KINDS = {
    "plain": {},
    "zero2": ZERO2,
    "offload": {**ZERO2, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
    "deepspeed": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "fsdp": {"ACCELERATE_USE_FSDP": "true"},
}
FOLDERS = {
    ("plain", 1): "checkpoints", ("plain", 2): "checkpoints", ("fsdp", 2): "checkpoints-fsdp", ("fsdp", 4): "checkpoints-fsdp",
    ("deepspeed", 2): "checkpoints-zero3-2", ("deepspeed", 4): "checkpoints-zero3-4", ("zero2", 2): "checkpoints-zero2-2",
    ("offload", 2): "checkpoints-zero2-offload-2",
}  # fmt: skip


def under(kind: str, monkeypatch: pytest.MonkeyPatch, processes: int = 1, rank: int = 0) -> Launch:
    """A process of a launch."""
    for name in {name for each in KINDS.values() for name in each}:
        monkeypatch.delenv(name, raising=False)
    for name, value in KINDS[kind].items():
        monkeypatch.setenv(name, value)
    return Launch(rank, processes, torch.device("cpu"))


@pytest.mark.parametrize(("kind", "processes"), FOLDERS)
def test_training_resumes_from_its_own_kind_of_launch_and_says_what_it_cannot_read(
    kind: str, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch, own = under(kind, monkeypatch, processes), FOLDERS[kind, processes]
    for step, folder in enumerate(sorted(set(FOLDERS.values())), start=1):
        (tmp_path / folder / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / folder / f"checkpoint-{step}" / COMPLETE).write_text('{"files": {}}')
    first: dict[str, Any] = {}  # What the first process tells the others.
    monkeypatch.setattr(Launch, "told", lambda self, value: first.setdefault("told", value) if self.main else first["told"])
    found = resume_point(tmp_path, launch)
    assert found is not None and Path(found).parent == tmp_path / own
    assert capsys.readouterr().err == ""
    assert resume_point(tmp_path, Launch(1, processes, launch.device)) == found
    assert capsys.readouterr().err == ""
    (Path(found) / COMPLETE).unlink()
    first.clear()
    assert resume_point(tmp_path, launch) is None
    others = ", ".join(sorted({*FOLDERS.values()} - {own}))
    assert f"this one ({own}) cannot read {others}; it starts from the beginning" in capsys.readouterr().err
    assert resume_point(tmp_path, Launch(1, processes, launch.device)) is None
    assert capsys.readouterr().err == ""  # The first process alone says it.


def test_a_first_start_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints-fsdp" / "checkpoint-3").mkdir(parents=True)  # Cut short: nobody could read it.
    assert resume_point(tmp_path, under("plain", monkeypatch)) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("kind", "lora", "dtype"), [
    ("plain", False, "float32"), ("fsdp", False, "float32"), ("deepspeed", False, "bfloat16"), ("plain", True, "bfloat16"),
])  # fmt: skip
def test_weights_are_fp32_in_training_but_where_deepspeed_keeps_copies_or_they_are_frozen(
    kind: str, lora: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSettings(name_or_path="x", dtype="bfloat16", lora=LoraSettings() if lora else None)
    assert under(kind, monkeypatch).training_dtype(model) == dtype


@pytest.mark.parametrize(
    ("kind", "bf16", "autocast"), [("plain", True, True), ("plain", False, False), ("deepspeed", True, False)]
)
def test_scoring_is_in_bf16_where_training_is(kind: str, bf16: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with under(kind, monkeypatch).precision(bf16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if autocast else torch.float32)


@pytest.mark.parametrize(("environment", "facts"), [
    ({}, {"launcher": "plain", "processes": 1}),
    ({"HANDBOOK_PROCESSES": "3"}, {"launcher": "per_device", "processes": 3}),
    ({"WORLD_SIZE": "4", "HANDBOOK_LAUNCH": "zero3"}, {"launcher": "accelerate", "processes": 4, "name": "zero3"}),
    ({"ACCELERATE_MIXED_PRECISION": "no", "HANDBOOK_LAUNCH": ""}, {"launcher": "accelerate", "processes": 1}),
])  # fmt: skip
def test_a_manifest_says_how_its_stage_was_launched(
    environment: dict[str, str], facts: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HANDBOOK_PROCESSES", "WORLD_SIZE", "HANDBOOK_LAUNCH", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch_facts() == facts


def test_the_first_process_passes_before_the_others_which_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several calls `wait` once: the first one after its work, the others before theirs."""
    happened: list[str] = []
    monkeypatch.setattr(Launch, "wait", lambda self: happened.append(f"{self.rank} waits"))
    for rank in (0, 1):
        with under("plain", monkeypatch, 2, rank).main_first():
            happened.append(f"{rank} works")
    assert happened == ["0 works", "0 waits", "1 waits", "1 works"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_is_marked_by_the_first_process_once_all_have_written_theirs(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "checkpoint-7" / COMPLETE
    mark.parent.mkdir()
    met: list[bool] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: met.append(mark.exists()))
    arguments: Any = SimpleNamespace(output_dir=str(tmp_path))
    MarkComplete().on_save(arguments, SimpleNamespace(global_step=7, is_world_process_zero=rank == 0), None)
    assert met == [False] and mark.exists() == (rank == 0)


@pytest.mark.parametrize("bf16", [True, False])
def test_a_training_has_the_recipes_precision_whatever_the_launch_says(
    bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch of GPUs names bf16, which transformers would take where the recipe has none; scoring would not."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no" if bf16 else "bf16")
    Launch(0, 1, torch.device("cpu")).train_in(bf16)
    arguments = TrainingArguments(str(tmp_path), bf16=bf16, use_cpu=True)
    assert arguments.mixed_precision == ("bf16" if bf16 else "no")
