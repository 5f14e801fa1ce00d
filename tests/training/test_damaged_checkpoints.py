"""Checkpoints of a training that were damaged after they were written: set aside in a line, never gone on from."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.training import checkpoints
from handbook_ext.training.checkpoints import (
    COMPLETE,
    MarkComplete,
    checksums,
    fault_of,
    last_complete_checkpoint,
    resume_point,
    sound_checkpoint,
)
from handbook_ext.training.trainer import save_policy
from tests.training.test_trainer import KillAt, Killed, Weights, _saving, assert_bits, trainer_of, weights_of

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

KEPT = {"checkpoint-3", "checkpoint-4"}


@pytest.fixture(scope="module")
def referred(tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]) -> EncodedPairs:
    """Pairs with reference log-probs, made up."""
    encoded = encode_pairs(make_pairs(19), ChatEncoder(tokenizer, max_length=56, max_prompt_length=40), explore=True)
    return encoded.with_reference({name: -20.0 for names in encoded.ids for name in names}, "ours")


@pytest.fixture(scope="module")
def killed(build: BuildPolicy, referred: EncodedPairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a training of six steps that was killed after four."""
    folder = tmp_path_factory.mktemp("killed")
    trainer = trainer_of(build(), referred, _saving(folder))
    trainer.add_callback(KillAt(4))
    with contextlib.suppress(Killed):
        trainer.train()
    return folder


@pytest.fixture(scope="module")
def whole(build: BuildPolicy, referred: EncodedPairs, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights that the training ends with where nothing stops it."""
    trainer = trainer_of(build(), referred, _saving(tmp_path_factory.mktemp("whole")))
    trainer.train()
    return weights_of(trainer)


def flip(path: Path) -> None:
    """Changes a byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "flipped_weights": (lambda c: flip(c / "model.safetensors"), "model.safetensors has another content than was written"),
    "flipped_optimizer": (lambda c: flip(c / "optimizer.pt"), "optimizer.pt has another content than was written"),
    "no_optimizer": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "no_scheduler": (lambda c: (c / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    "short_state": (lambda c: halve(c / "trainer_state.json"), "trainer_state.json has "),
    "short_random_numbers": (lambda c: halve(c / "rng_state.pth"), "rng_state.pth has "),
    "no_checksums": (lambda c: (c / COMPLETE).write_text(""), "it has no checksums"),
    "short_record": (lambda c: halve(c / COMPLETE), "it has no checksums"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_in_a_line_and_the_one_before_it_taken(
    damage: str, killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(killed, tmp_path / "checkpoints")
    spoil, words = DAMAGES[damage]
    spoil(folder / "checkpoint-4")
    assert sound_checkpoint(folder) == str(folder / "checkpoint-3")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said
    assert "was renamed to damaged-checkpoint-4; training goes on from checkpoint-3" in said
    assert {path.name for path in folder.iterdir()} == {"checkpoint-3", "damaged-checkpoint-4"}
    assert sound_checkpoint(folder) == str(folder / "checkpoint-3") and capsys.readouterr().err == ""
    spoil(folder / "checkpoint-3")
    assert sound_checkpoint(folder) is None
    assert "training goes on from its beginning" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", [("checkpoint-4",), ("checkpoint-3", "checkpoint-4")], ids=["before", "beginning"])
def test_training_goes_on_from_before_the_damage_to_the_same_bits(
    damaged: tuple[str, ...], killed: Path, whole: Weights, build: BuildPolicy, referred: EncodedPairs, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed, tmp_path / "checkpoints")
    for name in damaged:
        flip(folder / name / "model.safetensors")
    trainer = trainer_of(build(), referred, _saving(folder))
    trainer.train(resume_from_checkpoint=sound_checkpoint(folder))
    assert_bits(weights_of(trainer), whole)
    assert {path.name for path in folder.iterdir() if path.name[0] == "c"} == {"checkpoint-5", "checkpoint-6"}


def test_sound_checkpoints_are_taken_as_they_are(killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in killed.iterdir()} == KEPT and [fault_of(killed / name) for name in KEPT] == [None, None]
    folder = shutil.copytree(killed, tmp_path / "checkpoints")
    (folder / "checkpoint-5").mkdir()  # Killed while it was written.
    (folder / "checkpoint-5/model.safetensors").write_bytes(b"half")
    assert sound_checkpoint(folder) == str(folder / "checkpoint-4")
    assert "checkpoint-5: this checkpoint of a training was written in part" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == KEPT
    assert sound_checkpoint(tmp_path / "none") is None


def test_a_record_covers_what_every_process_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a sharded policy lie in folders of a checkpoint; of very large files the size alone is compared."""
    folder = tmp_path / "checkpoint-7"
    (folder / "global_step7").mkdir(parents=True)
    for name in ("latest", "global_step7/rank_0.pt", "global_step7/rank_1.pt"):
        (folder / name).write_bytes(name.encode())
    monkeypatch.setattr(checkpoints, "CHECKED", 10)
    arguments: Any = type("Arguments", (), {"output_dir": str(tmp_path)})
    state = type("State", (), {"global_step": 7, "is_world_process_zero": True})
    MarkComplete().on_save(arguments, state, None)
    files = json.loads((folder / COMPLETE).read_text())["files"]
    assert {name: checksum is None for name, (_, checksum) in files.items()} == {
        "global_step7/rank_0.pt": True, "global_step7/rank_1.pt": True, "latest": False,
    }  # fmt: skip
    flip(folder / "global_step7/rank_1.pt")
    assert fault_of(folder) is None
    halve(folder / "global_step7/rank_1.pt")
    assert fault_of(folder) == "global_step7/rank_1.pt has 11 bytes instead of 22"


def test_a_training_that_diverges_ends_at_once_in_a_line(build: BuildPolicy, referred: EncodedPairs, tmp_path: Path) -> None:
    policy = build()
    with torch.no_grad():
        next(policy.parameters())[:] = float("nan")
    with pytest.raises(UserError, match="training has diverged: the gradient of step 1 is NaN; lower learning_rate"):
        trainer_of(policy, referred, _saving(tmp_path)).train()


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_a_policy_that_is_no_number_at_the_end_is_not_published(
    value: float, word: str, build: BuildPolicy, referred: EncodedPairs, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of(build(), referred, _saving(tmp_path))
    with torch.no_grad():
        trainer.model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] = value
    with pytest.raises(UserError, match=f"has diverged: the weight model.layers.1.mlp.up_proj.weight holds {word}, so nothing"):
        save_policy(trainer, tokenizer, tmp_path / "policy")


def recorded(folder: Path, *names: str) -> Path:
    """A folder of whole checkpoints, each of a few bytes."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "weights").write_bytes(b"0123456789")
        (folder / name / COMPLETE).write_text(json.dumps({"files": checksums(folder / name)}))
    return folder


def test_a_checksum_covers_every_piece_that_a_file_is_read_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHUNK", 4)
    checkpoint = recorded(tmp_path, "checkpoint-1") / "checkpoint-1"
    for place in (0, 5, 9):
        content = bytearray(b"0123456789")
        content[place] ^= 64
        (checkpoint / "weights").write_bytes(content)
        assert fault_of(checkpoint) == "weights has another content than was written"


def test_the_newest_checkpoint_is_that_of_the_greatest_step(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "checkpoint-10", "checkpoint-9", "checkpoint-100")
    assert last_complete_checkpoint(folder) == sound_checkpoint(folder) == str(folder / "checkpoint-100")


def test_a_step_whose_checkpoint_was_damaged_before_can_be_set_aside_again(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "checkpoint-3", "checkpoint-4", "damaged-checkpoint-4")
    flip(folder / "checkpoint-4/weights")
    assert sound_checkpoint(folder) == str(folder / "checkpoint-3")
    assert fault_of(folder / "damaged-checkpoint-4") == "weights has another content than was written"


@pytest.mark.parametrize(("main", "own", "told"), [(True, False, True), (False, False, False), (True, True, False)])
def test_checkpoints_of_another_launch_are_told_once_and_only_where_there_are_none_of_this_one(
    main: bool, own: bool, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch: Any = SimpleNamespace(checkpoints="checkpoints", main=main, first_alone=lambda look: look())
    recorded(tmp_path / "checkpoints-fsdp", "checkpoint-2")
    if own:
        recorded(tmp_path / "checkpoints", "checkpoint-1")
    assert resume_point(tmp_path, launch) == (str(tmp_path / "checkpoints/checkpoint-1") if own else None)
    assert ("(checkpoints) cannot read checkpoints-fsdp; it starts" in capsys.readouterr().err) is told
