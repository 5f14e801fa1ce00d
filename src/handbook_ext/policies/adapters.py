"""Low-rank adapters (LoRA, arXiv 2106.09685, with PEFT): added to a policy, disabled, merged into it, saved and loaded."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from handbook_ext.core.artifacts import ADAPTER_CONFIG, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.policies.loading import refuse_diverged, refuse_other_weights
from handbook_ext.policies.saving import save_whole
from handbook_ext.recipes.settings import LoraSettings

ADAPTER = "adapter"  # A policy's sub-folder that holds its last adapter.
CONFIG, WEIGHTS = ADAPTER_CONFIG, "adapter_model.safetensors"
ERROR_LENGTH = 240  # Characters of a library's error message that a UserError repeats.


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's files, and the policy that it belongs on (a folder or hub id, at a revision)."""

    source: str
    folder: Path
    base: str
    base_revision: str | None

    @property
    def sha256(self) -> str:
        """Returns the hash of the adapter itself, without its base."""
        return hashlib.sha256("\n".join(sha256_of(self.folder / name) for name in (CONFIG, WEIGHTS)).encode()).hexdigest()


def find_adapter(source: str, revision: str | None) -> AdapterFiles | None:
    """Returns the adapter that a folder or hub id holds, or None where there is none (or nothing at all).

    Raises UserError for an adapter that names no base, or whose weights are not in a safetensors file.
    """
    config = _file(source, CONFIG, revision)
    if config is None:
        return None
    values = json.loads(config.read_text())
    base = values.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{source}: this adapter names no base (base_model_name_or_path in {CONFIG}); give the merged policy")
    if _file(source, WEIGHTS, revision) is None:
        raise UserError(f"{source}: this adapter has no {WEIGHTS}; save it anew with peft, which writes safetensors")
    # Adapters that a run trained name their base relative to their own folder, so that a run can be moved as a whole; others
    # name a hub id, or a folder relative to where the command runs.
    beside = os.path.normpath(config.parent / base)
    relative = os.path.isdir(beside) or (base.startswith(".") and not os.path.isdir(base))
    return AdapterFiles(source, config.parent, beside if relative else base, values.get("revision"))


def load_adapter(adapter: AdapterFiles, load_base: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Returns the base with the adapter merged into its weights, in the base's type: a plain policy, all of it trainable.

    Raises UserError when the base cannot be loaded, the adapter does not fit it, or cannot be merged.
    """
    try:
        base = load_base()
    except UserError as error:
        raise UserError(f"{adapter.source}: the base of this adapter cannot be had: {error}") from None
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = None not in (embeddings, head) and embeddings.weight is head.weight
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # Their layers would keep random adapters.
            policy = PeftModel.from_pretrained(base, str(adapter.folder), torch_device="cpu")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UserWarning) as error:
        reason = " ".join(f"{error}".split())[:ERROR_LENGTH] or type(error).__name__
        raise UserError(f"{adapter.source}: this adapter does not fit its base {adapter.base} ({reason})") from None
    known = {*get_peft_model_state_dict(policy, save_embedding_layers=False), *policy.state_dict()}
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:  # What it has no layer for, peft leaves out.
        unexpected = set(file.keys()) - known
    refuse_other_weights(adapter.source, (), unexpected, {}, f"adapter on {adapter.base}")
    if not hasattr(policy.base_model, "merge_and_unload"):
        kind = policy.active_peft_config.peft_type.value
        raise UserError(f"{adapter.source}: an adapter of type {kind} cannot be merged into its base; give one of type LORA")
    if tied and any(isinstance(layer, BaseTunerLayer) for layer in _embeddings_and_head(policy)):
        raise UserError(
            f"{adapter.source}: the base shares its embeddings with its head, and this adapter changes one of the two, so "
            "merging would change the other as well; untie the base, or give a merged policy"
        )
    return merged(policy)


def adapted(policy: PreTrainedModel, lora: LoraSettings, seed: int, arguments: TrainingArguments | None = None) -> PeftModel:
    """Returns the policy with new adapters, drawn by seed, as the only trainable weights.

    W becomes W + (alpha / r) B A with B = 0, so that log-probs are at first those of the policy itself (arXiv 2106.09685,
    section 4.1). arguments: those of the training, adjusted so that gradient checkpointing works with frozen weights. Raises
    UserError for a target that is no linear layer, and lists those that are.
    """
    _check_targets(policy, lora.target_modules)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout, task_type="CAUSAL_LM",
        target_modules="all-linear" if lora.target_modules is None else list(lora.target_modules),
    )  # fmt: skip
    # ZeRO-3 gathers small weights into one buffer, which must be of one type; elsewhere adapters are fp32 on any base.
    wrapped = get_peft_model(policy, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    if arguments is not None and arguments.gradient_checkpointing:
        # A checkpointed block passes no gradient on unless one of its inputs requires one; frozen embeddings do not.
        wrapped.enable_input_require_grads()
        if is_deepspeed_zero3_enabled():  # TRL issue 2514: ZeRO-3 has released frozen weights when a block is recomputed.
            arguments.gradient_checkpointing_kwargs = {**(arguments.gradient_checkpointing_kwargs or {}), "use_reentrant": True}
    return wrapped


def adapter_off(policy: PeftModel) -> AbstractContextManager[None]:
    """Returns a context in which a policy with adapters computes as its base; raises TypeError for a policy without adapters."""
    if not isinstance(policy, PeftModel):
        raise TypeError(f"a plain {type(policy).__name__} has no adapter to turn off")
    return policy.disable_adapter()


def merged(policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the policy with its adapter added to its weights, in place, all of it trainable; one without adapters unchanged."""
    if not isinstance(policy, PeftModel):
        return policy
    plain: PreTrainedModel = policy.merge_and_unload()
    return plain.requires_grad_(True)


def save_adapted(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, base: str | None, load_base: Callable[[], PreTrainedModel]
) -> None:
    """Writes the adapter to folder/adapter, then the merged policy and the training log to the folder itself.

    base: the policy under the adapter, as a hub id or a path relative to folder/adapter; None where it is not on disk.
    load_base: loads it as for training; the first process does so once more, since the trainer's own may be sharded, and
    merging a share of the weights is not defined. All processes must call this, the first one writes.
    """
    adapter_folder = folder / ADAPTER
    save_whole(trainer, adapter_folder)
    if is_deepspeed_zero3_enabled():
        unset_hf_deepspeed_config()  # The base would be loaded in shards, by all processes together.
    if trainer.is_world_process_zero():
        for name in ("training_args.bin", "README.md"):  # A pickle, and a model card that names a local path.
            (adapter_folder / name).unlink(missing_ok=True)
        refuse_diverged(adapter_folder)
        _rewrite_config(adapter_folder / CONFIG, base)
        tokenizer.save_pretrained(adapter_folder)
        load_adapter(AdapterFiles(str(adapter_folder), adapter_folder, base or "", None), load_base).save_pretrained(folder)
        refuse_diverged(folder)
        tokenizer.save_pretrained(folder)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))


def _rewrite_config(path: Path, base: str | None) -> None:
    """Writes an adapter's configuration so that equal adapters have equal files: peft writes its sets in arbitrary order."""
    config: dict[str, Any] = json.loads(path.read_text())
    config |= {"base_model_name_or_path": base, "target_modules": sorted(config["target_modules"])}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _check_targets(policy: PreTrainedModel, targets: list[str] | None) -> None:
    """Raises UserError for a target that names no linear layer inside the policy; the LM head is not one, it gets no adapter."""
    head = policy.get_output_embeddings()
    layers = [name for name, part in policy.named_modules() if isinstance(part, torch.nn.Linear | Conv1D) and part is not head]
    # As in peft, a target names a layer by its full path or by the end of it.
    unknown = [each for each in targets or [] if not any(f".{name}".endswith(f".{each}") for name in layers)]
    if unknown or targets == []:
        what = f"'{unknown[0]}' is no linear layer inside" if unknown else "an empty list leaves nothing to train in"
        names = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
        raise UserError(f"model.lora.target_modules: {what} this {policy.config.model_type}; it has: {names}; null takes all")


def _embeddings_and_head(policy: PeftModel) -> tuple[Any, Any]:
    """Returns the embeddings and the LM head, each as a tuner layer where the adapter changes it."""
    return policy.get_base_model().get_input_embeddings(), policy.get_base_model().get_output_embeddings()


def _file(source: str, name: str, revision: str | None) -> Path | None:
    """Returns a file of a folder, or of a hub id after downloading it; None where it does not exist or cannot be reached."""
    if Path(source).is_dir():
        return found if (found := Path(source, name)).is_file() else None
    found = cached_file(
        source, name, revision=revision, _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)
