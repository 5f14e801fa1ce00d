"""Loading and building policies and tokenizers, and the hash that names a policy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from handbook_ext.core.artifacts import checkpoint_files, read_manifest, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.policies.adapters import AdapterFiles, find_adapter, load_adapter
from handbook_ext.policies.chat import apply_template
from handbook_ext.recipes.settings import ModelSettings

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]


def policy_source(settings: ModelSettings, run: Path, policy_from: str | None) -> tuple[str, Path | None]:
    """Returns what to load and, for a policy that the run trained, the artifact to verify."""
    if policy_from is None:
        if settings.name_or_path is None:
            raise UserError("model.name_or_path is not set, so there is no policy to start from")
        return settings.name_or_path, None
    artifact = run / policy_from / "policy"
    return str(artifact), artifact


def load_policy(source: str, settings: ModelSettings, *, trained_here: bool) -> PreTrainedModel:
    """Returns the policy in evaluation mode with dropout off; `own` policies of the run have no revision.

    A folder or hub id that holds an adapter gives its base with the adapter merged.
    """
    kwargs: dict[str, Any] = {
        "dtype": getattr(torch, settings.dtype),
        "attn_implementation": settings.attn_implementation,
        "trust_remote_code": settings.trust_remote_code,
        "revision": None if trained_here else settings.revision,
    }
    with _explained(source):
        adapter = find_adapter(source, kwargs["revision"])
        if adapter is not None:
            return load_adapter(
                adapter, lambda: load_policy(adapter.base, _of_base(settings, adapter), trained_here=False)
            ).eval()
        config = AutoConfig.from_pretrained(source, trust_remote_code=settings.trust_remote_code, revision=kwargs["revision"])
        without_dropout(config)
        model = AutoModelForCausalLM.from_pretrained(source, config=config, **kwargs)
    return model.eval()


def load_tokenizer(source: str, settings: ModelSettings, *, trained_here: bool) -> PreTrainedTokenizerBase:
    """Returns the tokenizer with a chat template and a pad token; own policies carry the recipe's template already.

    An adapter without a tokenizer of its own has that of its base.
    """
    with _explained(source):
        adapter = find_adapter(source, None if trained_here else settings.revision)
        if adapter is not None and not (adapter.folder / "tokenizer_config.json").is_file():
            return load_tokenizer(adapter.base, _of_base(settings, adapter), trained_here=False)
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=settings.trust_remote_code, revision=None if trained_here else settings.revision
        )
    apply_template(tokenizer, None if trained_here else settings.chat_template, source)
    if tokenizer.eos_token is None:
        raise UserError(f"{source}: the tokenizer has no end token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def policy_hash(source: str, settings: ModelSettings) -> str:
    """Returns the hash of a policy's weights and configuration: of a folder's files, or of a hub commit's name.

    That of an adapter is made of its files' and its base's.
    """
    with _explained(source):
        adapter = find_adapter(source, settings.revision)
    if adapter is not None:
        base = policy_hash(adapter.base, _of_base(settings, adapter))
        return hashlib.sha256(f"{adapter.sha256}\n{base}".encode()).hexdigest()
    folder = Path(source)
    if folder.is_dir():
        files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
        return hashlib.sha256("\n".join(sha256_of(file) for file in files).encode()).hexdigest()
    with _explained(source):
        config = Path(str(cached_file(source, "config.json", revision=settings.revision)))
    commit = config.parent.name  # The cache keeps each commit's files in a folder that is called like it.
    return hashlib.sha256(f"{source}@{commit}".encode()).hexdigest()


def external_checkpoint_hashes(source: str, settings: ModelSettings) -> dict[str, str]:
    """Returns what vouches for a policy that no stage of the run made: its hash, and those of a local folder's other files.

    The tokenizer and the chat template are among them.
    """
    told, folder = {"policy": policy_hash(source, settings)}, Path(source)
    others = [path for path in checkpoint_files(folder) if path.suffix != ".safetensors"] if folder.is_dir() else []
    return told | {f"{path.parent.name}/{path.name}": sha256_of(path) for path in others}


def named_policy_hash(run: Path, name: str, settings: ModelSettings) -> str:
    """Returns the hash of a run's policy by name (start, sft, iter<N>) without need of its weights."""
    if name == "start":
        return policy_hash(str(settings.name_or_path), settings)
    return str(read_manifest(run / name / "policy")["policy"])


def _of_base(settings: ModelSettings, adapter: AdapterFiles) -> ModelSettings:
    """Returns the settings with which an adapter's base is loaded: the recipe's revision is the adapter's own."""
    return settings.model_copy(update={"revision": adapter.base_revision})


def without_dropout(config: Any) -> None:
    """Sets every dropout of a configuration to 0: log-probs must be those of the policy that samples."""
    for name, value in vars(config).items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("_pdrop")):
            setattr(config, name, 0.0)


def build_policy(settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Returns a policy with fresh weights, by seed, in the recipe's architecture and the tokenizer's vocabulary."""
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
    """Returns a byte-level BPE tokenizer of at most `tokenizer_vocab_size` entries, with the recipe's chat template."""
    size = settings.tokenizer_vocab_size
    if size is None:
        raise UserError("model.tokenizer_vocab_size is not set, so there is no tokenizer to train")
    bpe = Tokenizer(models.BPE(unk_token=None))
    # A space at the head of each line, undone in decoding: a word that begins an answer is the token it is elsewhere.
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


class _explained:
    """Turns what the libraries raise for a checkpoint that cannot be had into one line."""

    def __init__(self, source: str) -> None:
        """Takes what is being loaded."""
        self.source = source

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Raises UserError in place of the libraries' errors."""
        if isinstance(error, OSError | ValueError | KeyError | ImportError) and not isinstance(error, UserError):
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self.source}: cannot be loaded ({first}); check the name, the network and your access, or give a folder"
            ) from None
