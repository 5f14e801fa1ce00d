"""A trained model in a folder: under FSDP the whole of it is asked for, which the shares of a checkpoint are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin

from handbook_ext.policies.saving import save_whole


@pytest.mark.parametrize("version", [1, 2])
def test_the_whole_is_gathered_before_it_is_saved(version: int, tmp_path: Path) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type="SHARDED_STATE_DICT")
    seen: list[tuple[str, str]] = []
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), get_state_dict=dict),
        model=None,
        save_model=lambda folder: seen.append((folder, plugin.state_dict_type.name)),
    )
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    save_whole(trainer, tmp_path)
    assert seen == [(str(tmp_path), "FULL_STATE_DICT")]  # With shares, transformers' Trainer writes no model.


def test_without_fsdp_it_is_saved_as_it_is(tmp_path: Path) -> None:
    seen: list[str] = []
    accelerator = SimpleNamespace(state=SimpleNamespace(), get_state_dict=dict)
    trainer: Any = SimpleNamespace(accelerator=accelerator, save_model=seen.append, model=None)
    save_whole(trainer, tmp_path)
    assert seen == [str(tmp_path)]


@pytest.mark.parametrize("gathered", [{"embed": 1, "head": 1, "body": 2}, None])
def test_weights_that_are_tied_are_saved_once_although_gathering_copies_them(gathered: dict[str, int] | None) -> None:
    """None is what processes that do not write are given."""
    accelerator = SimpleNamespace(state=SimpleNamespace(), get_state_dict=lambda model: gathered)
    saved: list[Any] = []
    trainer: Any = SimpleNamespace(
        accelerator=accelerator, model=SimpleNamespace(all_tied_weights_keys={"head": "embed", "absent": "gone"}),
        save_model=lambda folder: saved.append(accelerator.get_state_dict(None)),
    )  # fmt: skip
    before = accelerator.get_state_dict
    save_whole(trainer, Path("x"))
    assert saved == [gathered and {"embed": 1, "body": 2}]
    assert accelerator.get_state_dict is before
