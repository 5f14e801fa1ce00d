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
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
        save_model=lambda folder: seen.append((folder, plugin.state_dict_type.name)),
    )
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    save_whole(trainer, tmp_path)
    assert seen == [(str(tmp_path), "FULL_STATE_DICT")]  # With shares, transformers' Trainer writes no model.


def test_without_fsdp_it_is_saved_as_it_is(tmp_path: Path) -> None:
    seen: list[str] = []
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace()), save_model=seen.append)
    save_whole(trainer, tmp_path)
    assert seen == [str(tmp_path)]
