"""What both sides are given: rows of real texts with a sample each, a fixed scorer, a tokenizer and a small random Mistral."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import iter_jsonl

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
# The layout of Llama 3, which begins every rendered text with BOS and trims what is said.
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set said = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + eos_token %}{% if loop.index0 == 0 %}{% set said = bos_token + said %}{% endif %}"
    "{{ said }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Where Llama 3's tokenizer splits texts: a run of line breaks is one word, whatever follows.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 1000
GRADES = 6  # Few, so that candidates tie in some rows, and all three of them in one row of 36.


@dataclass(frozen=True)
class RawPair:
    """A row as the data set has it, and the text that the policy is taken to have sampled, as the engine returns it."""

    number: int
    columns: dict[str, Any]
    sample: str

    @property
    def prompt(self) -> str:
        """Returns the text of the question."""
        return str(self.columns["chosen"][0]["content"])

    @property
    def answers(self) -> tuple[str, str]:
        """Returns the texts of chosen and rejected."""
        return str(self.columns["chosen"][-1]["content"]), str(self.columns["rejected"][-1]["content"])


def read_rows(path: Path, limit: int) -> list[RawPair]:
    """Returns the first `limit` rows, each with a sample: its column `sample`, or a text that other rows have.

    Raises UserError for rows that are not one question with two answers: the official code reads the second message alone.
    """
    if not path.is_file():
        raise UserError(f"--pairs: {path} does not exist; give a .jsonl file of prompt, chosen and rejected")
    rows = [row for _, row in zip(range(limit), (row for _, row in iter_jsonl(path)), strict=False)]
    for number, row in enumerate(rows, 1):
        sides = [row.get("chosen"), row.get("rejected")]
        if not all(isinstance(side, list) and [turn.get("role") for turn in side] == ["user", "assistant"] for side in sides):
            raise UserError(
                f"{path}:{number}: chosen and rejected must be a user's and an assistant's message; leave the row out"
            )
    if len(rows) < 2:
        raise UserError(f"{path}: has {len(rows)} rows; give at least 2")
    return [RawPair(number, row, str(row.get("sample", stand_in(rows, number)))) for number, row in enumerate(rows)]


def stand_in(rows: Sequence[dict[str, Any]], number: int) -> str:
    """Returns a text in place of a sample: mostly the next row's chosen or rejected, in some rows a special case.

    Of eight rows one repeats its own chosen, one its own rejected, one is short, and one has blanks around it.
    """
    following = rows[(number + 1) % len(rows)]
    other = str(following[("chosen", "rejected")[number % 2]][-1]["content"])
    special: dict[int, Callable[[], str]] = {
        0: lambda: str(rows[number]["chosen"][-1]["content"]),
        1: lambda: str(rows[number]["rejected"][-1]["content"]),
        2: lambda: " ".join(other.split()[:6]),
        3: lambda: f"  {other}\n\n",
    }
    return special.get(number % 8, lambda: other)()


def grade(prompt: str, text: str) -> float:
    """Returns the fixed score of an answer, 0 to GRADES - 1, in place of PairRM's."""
    return float(hashlib.sha256(f"{prompt}\n{text}".encode()).digest()[0] % GRADES)


def texts_of(rows: Iterable[RawPair]) -> Iterator[str]:
    """Yields the texts that a tokenizer is trained on."""
    for row in rows:
        yield from (row.prompt, *row.answers)


def byte_level(texts: Iterable[str]) -> Tokenizer:
    """Returns a byte-level BPE tokenizer that splits as Llama 3's does."""
    bpe = Tokenizer(models.BPE(unk_token=None))
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[UNKNOWN, BOS, EOS], initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    return bpe


def sentencepiece_like(texts: Iterable[str]) -> Tokenizer:
    """Returns a BPE tokenizer laid out as Mistral's: blanks are letters, a text begins with one, rare letters are bytes."""
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = (text.replace("\n", " ") for text in texts)  # Mistral has no token with a line break, other than the byte.
    bpe.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=VOCABULARY - 256, special_tokens=[UNKNOWN, BOS, EOS], limit_alphabet=100, show_progress=False,
    ))  # fmt: skip
    trained = json.loads(bpe.to_str())["model"]
    vocabulary = trained["vocab"] | {f"<0x{byte:02X}>": len(trained["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in trained["merges"]]
    whole = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    whole.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    whole.add_special_tokens([AddedToken(token, normalized=False) for token in (UNKNOWN, BOS, EOS)])
    return whole


TOKENIZERS = {"byte_level": byte_level, "sentencepiece": sentencepiece_like}


def make_tokenizer(kind: str, texts: Iterable[str], template: str) -> PreTrainedTokenizerBase:
    """Returns a trained tokenizer that begins texts with BOS and pads with EOS, as that of mistral-7b-sft-beta does."""
    bpe = TOKENIZERS[kind](texts)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token=UNKNOWN, bos_token=BOS, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(vocabulary: int, seed: int) -> MistralForCausalLM:
    """Returns a Mistral of about a million random weights, fp32."""
    torch.manual_seed(seed)
    return MistralForCausalLM(MistralConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=None, initializer_range=0.1, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )).float()  # fmt: skip
