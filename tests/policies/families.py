"""Tokenizers in the manner of the families that the recipes name, trained here on a few words, with their public chat templates.

What matters is kept: which tokens are special, whether BOS is written by the template, by the tokenizer or by nobody, what ends a
turn, how spaces are encoded. Facts of the public tokenizer_config.json and generation_config.json files; templates are
shortened to the roles that occur here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from handbook_ext.policies.templates import ZEPHYR_TEMPLATE

WORDS = [
    "What should I pack for the winter? Be brief. A lamp. And then?",
    "Warm socks, bread, and a good book. a b user assistant hi there I obey and more No. < | > / _ system end",
] * 3


@dataclass(frozen=True)
class Family:
    """A family: special tokens, names of BOS and EOS, template, what ends a turn, and generation_config's end tokens."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    template: str
    turn_end: str
    generation_ends: tuple[str, ...] = ()
    adds_bos: bool = False
    sentencepiece: bool = False
    rstrip: bool = False


CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful"
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI3 = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
FAMILIES = {
    "zephyr": Family(
        ("<unk>", "<s>", "</s>"), "<s>", "</s>", ZEPHYR_TEMPLATE, "</s>", ("</s>",), adds_bos=True, sentencepiece=True
    ),
    "tinyllama": Family(("<unk>", "<s>", "</s>"), "<s>", "</s>", ZEPHYR_TEMPLATE, "</s>", adds_bos=True, sentencepiece=True),
    "pythia": Family(("<|endoftext|>", "<|padding|>"), "<|endoftext|>", "<|endoftext|>", ZEPHYR_TEMPLATE, "<|endoftext|>"),
    "llama3": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|begin_of_text|>",
        "<|end_of_text|>", LLAMA3, "<|eot_id|>", ("<|end_of_text|>", "<|eot_id|>"), adds_bos=True,
    ),
    "phi3": Family(
        ("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"), "<s>", "<|endoftext|>", PHI3,
        "<|end|>", ("<|endoftext|>", "<|assistant|>", "<|end|>"), sentencepiece=True, rstrip=True,
    ),
    "smollm2": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_start|>", "<|im_end|>", CHATML, "<|im_end|>", ("<|im_end|>",),
    ),
}  # fmt: skip


def tokenizer_of(name: str, texts: Sequence[str] = WORDS, size: int = 700) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a family, trained on texts to at most `size` entries."""
    family = FAMILIES[name]
    bpe = Tokenizer(models.BPE(byte_fallback=family.sentencepiece, unk_token="<unk>" if family.sentencepiece else None))
    if family.sentencepiece:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        bpe.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False, rstrip=family.rstrip) for token in family.special]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False,
        initial_alphabet=[] if family.sentencepiece else pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    if family.sentencepiece:  # Bytes are pieces of the vocabulary, and no special tokens.
        parts = json.loads(bpe.to_str())
        vocabulary = parts["model"]["vocab"]
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
        bpe = Tokenizer.from_str(json.dumps(parts))
    if family.adds_bos:
        bos = str(family.bos)
        bpe.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=family.bos, eos_token=family.eos, pad_token=family.eos,
        additional_special_tokens=list(family.special), chat_template=family.template, clean_up_tokenization_spaces=False,
    )  # fmt: skip
