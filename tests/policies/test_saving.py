"""A trained model in a folder: under FSDP the whole of it is asked for, which the shares of a checkpoint are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import FullyShardedDataParallelPlugin

from handbook_ext.policies import adapters
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
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"  # Of the checkpoints of a training that goes on.


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


def test_a_tied_weight_whose_twin_was_not_gathered_is_kept() -> None:
    gathered = {"head": 1, "body": 2}
    accelerator = SimpleNamespace(state=SimpleNamespace(), get_state_dict=lambda model: gathered)
    saved: list[Any] = []
    trainer: Any = SimpleNamespace(
        accelerator=accelerator, model=SimpleNamespace(all_tied_weights_keys={"head": "embed"}),
        save_model=lambda folder: saved.append(accelerator.get_state_dict(None)),
    )  # fmt: skip
    save_whole(trainer, Path("x"))
    assert saved == [gathered]


@pytest.mark.parametrize("first", [True, False])
def test_under_zero3_the_first_process_alone_loads_the_base_and_whole(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While transformers knows of ZeRO-3, a policy is loaded in shards, by all processes together: one alone would hang."""
    happened: list[str] = []
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"target_modules": ["v", "q"]}')
    monkeypatch.setattr(adapters, "save_whole", lambda trainer, folder: happened.append(f"saved {folder.name}"))
    monkeypatch.setattr(adapters, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(adapters, "unset_hf_deepspeed_config", lambda: happened.append("forgot ZeRO-3"))
    policy = SimpleNamespace(save_pretrained=lambda folder: happened.append(f"policy to {folder.name}"))
    monkeypatch.setattr(adapters, "load_adapter", lambda files, load: happened.append(f"merged on {load()}") or policy)
    tokenizer: Any = SimpleNamespace(save_pretrained=lambda folder: happened.append(f"tokenizer to {folder.name}"))
    trainer: Any = SimpleNamespace(
        is_world_process_zero=lambda: first, state=SimpleNamespace(save_to_json=lambda path: happened.append("log"))
    )
    adapters.save_adapted(trainer, tokenizer, tmp_path, "../base", lambda: "base")
    alone = ["tokenizer to adapter", "merged on base", f"policy to {tmp_path.name}", f"tokenizer to {tmp_path.name}", "log"]
    assert happened == ["saved adapter", "forgot ZeRO-3", *(alone if first else [])]
    told = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert ('"base_model_name_or_path": "../base"' in told) == first
