"""Loading and building policies and tokenizers, and the hash that identifies a policy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from handbook_ext.core.artifacts import checkpoint_files, sha256_of, weights_hash
from handbook_ext.core.errors import UserError
from handbook_ext.policies.adapters import AdapterFiles, find_adapter, load_adapter
from handbook_ext.policies.loading import load_whole, loading_errors, refuse_not_finite
from handbook_ext.policies.templates import apply_template
from handbook_ext.recipes.settings import ModelSettings

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]


def load_policy(source: str, settings: ModelSettings, *, trained_here: bool) -> PreTrainedModel:
    """Returns the policy in evaluation mode with dropout off, in the type and attention of the settings.

    trained_here: a stage of the run made it, so that the recipe's hub revision does not concern it. A folder or hub id that
    holds an adapter gives its base with the adapter merged. Raises UserError where the policy cannot be loaded, lacks a weight
    or has one that is no number.
    """
    kwargs: dict[str, Any] = {
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": settings.attn_implementation,
        "trust_remote_code": settings.trust_remote_code,
        "revision": None if trained_here else settings.revision,
    }
    with loading_errors(source):
        adapter = find_adapter(source, kwargs["revision"])
        if adapter is not None:
            merged = load_adapter(adapter, lambda: load_policy(adapter.base, _of_base(settings, adapter), trained_here=False))
            refuse_not_finite(merged, source)
            return merged.eval()
        config = AutoConfig.from_pretrained(source, trust_remote_code=settings.trust_remote_code, revision=kwargs["revision"])
        without_dropout(config)
    model: PreTrainedModel = load_whole(AutoModelForCausalLM, source, config=config, **kwargs)
    if not trained_here:  # Training publishes none that is not finite.
        refuse_not_finite(model, source)
    return model.eval()


def load_tokenizer(source: str, settings: ModelSettings, *, trained_here: bool) -> PreTrainedTokenizerBase:
    """Returns the tokenizer with a chat template and a pad token; policies trained here were saved with the recipe's template.

    An adapter without a tokenizer of its own has that of its base. Raises UserError where there is none or it cannot be used.
    """
    with loading_errors(source):
        adapter = find_adapter(source, None if trained_here else settings.revision)
        if adapter is not None and not (adapter.folder / "tokenizer_config.json").is_file():
            return load_tokenizer(adapter.base, _of_base(settings, adapter), trained_here=False)
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=settings.trust_remote_code, revision=None if trained_here else settings.revision
        )
    apply_template(tokenizer, None if trained_here else settings.chat_template, source)
    if tokenizer.eos_token is None:
        raise UserError(f"{source}: the tokenizer has no end token; set eos_token in its tokenizer_config.json")
    # Padding is masked everywhere and never a target, so the end token can stand in for it.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def generation_ends(source: str, settings: ModelSettings, *, trained_here: bool) -> frozenset[int]:
    """Returns the ids at which a checkpoint's generation_config stops; without one, its config's, as transformers does.

    An adapter without one has its base's.
    """
    revision = None if trained_here else settings.revision
    with loading_errors(source):
        adapter = find_adapter(source, revision)
    try:
        found = GenerationConfig.from_pretrained(source, revision=revision).eos_token_id
    except OSError:
        if adapter is not None:
            return generation_ends(adapter.base, _of_base(settings, adapter), trained_here=False)
        found = getattr(config_of(source, settings, trained_here=trained_here), "eos_token_id", None)
    return frozenset([] if found is None else [found] if isinstance(found, int) else found)


def config_of(source: str, settings: ModelSettings, *, trained_here: bool) -> Any:
    """Returns the configuration of a checkpoint; an adapter has its base's. Raises UserError where there is none."""
    revision = None if trained_here else settings.revision
    with loading_errors(source):
        adapter = find_adapter(source, revision)
        if adapter is not None:
            return config_of(adapter.base, _of_base(settings, adapter), trained_here=False)
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=settings.trust_remote_code)


def policy_hash(source: str, settings: ModelSettings, hash_of: Callable[[Path], str] = sha256_of) -> str:
    """Returns the sha256 of a policy's weights and configuration: of a folder's files, or of a hub id with its commit.

    The hash of an adapter combines those of its files and of its base. Raises UserError where the policy cannot be found.
    """
    with loading_errors(source):
        adapter = find_adapter(source, settings.revision)
    if adapter is not None:
        base = policy_hash(adapter.base, _of_base(settings, adapter), hash_of)
        return hashlib.sha256(f"{adapter.sha256}\n{base}".encode()).hexdigest()
    folder = Path(source)
    if folder.is_dir():
        found = weights_hash({file.name: hash_of(file) for file in (*folder.glob("*.safetensors"), folder / "config.json")})
        if found is None:
            raise UserError(f"{source}: has no safetensors file; save the checkpoint anew with save_pretrained, which writes one")
        return found
    with loading_errors(source):
        config = Path(str(cached_file(source, "config.json", revision=settings.revision)))
    commit = config.parent.name  # The hub's cache names a snapshot's folder after its commit.
    return hashlib.sha256(f"{source}@{commit}".encode()).hexdigest()


def external_checkpoint_hashes(
    source: str, settings: ModelSettings, hash_of: Callable[[Path], str] = sha256_of
) -> dict[str, str]:
    """Returns the content hashes of a checkpoint that no stage of the run made: its policy hash, and its other local files.

    The other files hold the tokenizer and the chat template, which change what a policy generates as much as weights do.
    """
    hashes, folder = {"policy": policy_hash(source, settings, hash_of)}, Path(source)
    others = [path for path in checkpoint_files(folder) if path.suffix != ".safetensors"] if folder.is_dir() else []
    # Relative to the checkpoint: an adapter and its base, which lies elsewhere, may have folders and files of one name.
    return hashes | {os.path.relpath(path, folder): hash_of(path) for path in others} | template_hashes(settings, hash_of)


def template_hashes(settings: ModelSettings, hash_of: Callable[[Path], str] = sha256_of) -> dict[str, str]:
    """Returns the hash of a chat template that is a file, as it is when a stage reads it; none for a name or null."""
    return {"chat_template": hash_of(settings.template_file)} if settings.template_file is not None else {}


def _of_base(settings: ModelSettings, adapter: AdapterFiles) -> ModelSettings:
    """Returns the settings for an adapter's base: the recipe's revision is of the adapter, the base has the one that it names."""
    return settings.model_copy(update={"revision": adapter.base_revision})


def without_dropout(config: Any) -> None:
    """Sets every dropout of a configuration to 0: log-probs must be those of the policy that samples."""
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
            setattr(config, name, 0.0)


def build_policy(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Returns a policy with random weights, by seed, in the recipe's architecture with the tokenizer's vocabulary.

    Raises UserError for an architecture that transformers cannot build.
    """
    values = dict(settings.architecture or {})
    kind = values.pop("model_type", None)
    try:
        config = AutoConfig.for_model(
            kind, **values, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        without_dropout(config)
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, settings.dtype), attn_implementation=settings.attn_implementation
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"model.architecture: {error}; give a model_type of transformers and its configuration values") from None


def train_tokenizer(texts: Iterable[str], settings: ModelSettings) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer of at most `tokenizer_vocab_size` entries, with a chat template."""
    size = settings.tokenizer_vocab_size
    if size is None:
        raise UserError("model.tokenizer_vocab_size is not set, so there is no tokenizer to train")
    bpe = Tokenizer(models.BPE(unk_token=None))
    # BPE tokens hold the space before a word. A space at the head of each line, undone in decoding, gives a word that begins
    # a completion the same token as elsewhere; a small model would have to learn it twice.
    bpe.normalizer = normalizers.Replace(Regex(r"\n(?=[^\n])"), "\n ")
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, min_frequency=2,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        additional_special_tokens=SPECIAL_TOKENS[3:], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    apply_template(tokenizer, settings.chat_template or "zephyr", "the trained tokenizer")
    return tokenizer
