"""A GGUF file to a plain checkpoint: dequantised weights, and the tokenizer with the special tokens that the file states."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.policies.loading import load_whole, loading_errors, refuse_not_finite

# How texts are cut before BPE, by `tokenizer.ggml.pre`, which transformers does not read; a name that is missing here keeps
# transformers' choice, that of GPT-2. "smollm" is the tokenizer.json of the SmolLM2 models: each digit is a piece of its own.
PRE_TOKENIZERS: dict[str, Any] = {"smollm": lambda: [pre_tokenizers.Digits(individual_digits=True)]}
TOKENS = ("bos", "eos", "pad", "unk")
FILE_TYPE, KIND, PRE = "general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.pre"
READ = {FILE_TYPE, KIND, PRE}


def load_gguf(file: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Returns the policy with plain weights of that type, its tokenizer, and in words what the file's quantisation lost.

    Raises UserError where the package gguf is missing, or the file is none that transformers reads.
    """
    if find_spec("gguf") is None:
        raise UserError(f"{file.name}: reading it needs the package gguf; install it: .venv/bin/pip install -e '.[gguf]'")
    from gguf import GGUFReader, LlamaFileType  # noqa: PLC0415 - an extra

    with loading_errors(str(file)):
        quantised = load_whole(
            AutoModelForCausalLM, file.parent, shown=str(file), gguf_file=file.name, dtype=getattr(torch, dtype)
        )
        refuse_not_finite(quantised, str(file))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        fields = {name: field.contents() for name, field in GGUFReader(file).fields.items() if name in READ}
    # transformers saves no model that was loaded from GGUF: its weights go into a plain one of the same configuration.
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    policy = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    policy.load_state_dict(quantised.state_dict())
    policy.generation_config = quantised.generation_config
    _correct(tokenizer, config, fields)
    kind = (
        LlamaFileType(fields[FILE_TYPE]).name.removeprefix("MOSTLY_") if FILE_TYPE in fields else "a type that it does not state"
    )
    return policy, tokenizer, f"dequantised from {kind}: they are near the published weights, not equal to them"


def _correct(tokenizer: Any, config: Any, fields: dict[str, Any]) -> None:
    """Gives a tokenizer what the file states and transformers leaves out: special tokens by id, and the cutting of texts."""
    for name in TOKENS:
        number = getattr(config, f"{name}_token_id", None)
        if number is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(number))
    tokenizer.clean_up_tokenization_spaces = False  # It would take blanks out of what was generated.
    if fields.get(KIND) == "gpt2":
        # Byte-level BPE. transformers adds steps of sentencepiece, which would turn a "▁" of a text into a blank.
        tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
        cut = PRE_TOKENIZERS.get(fields.get(PRE, ""), list)()
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, byte_level]) if cut else byte_level
