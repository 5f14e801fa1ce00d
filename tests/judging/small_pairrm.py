"""A PairRM of random weights in the layouts of the hub: small, but read by the same code as the published one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import DebertaV2Config, PreTrainedTokenizerFast

from handbook_ext.judging.pairrm_model import CANDIDATE, CANDIDATE1, CANDIDATE2, MARKERS, SOURCE, PairNetwork

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
Layout = Literal["PairRM", "PairRM-hf"]


def pairrm_tokenizer(texts: Iterable[str], vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """A tokenizer as DeBERTa-v3's: pieces of a Unigram model behind a space mark, a class token before and a separator behind."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.Replace("\n", " "), normalizers.NFC()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    backend.train_from_iterator(list(texts), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", mask_token="[MASK]",
        model_max_length=2048,
    )  # fmt: skip


def save_pairrm(
    folder: Path, texts: Iterable[str], *, layout: Layout = "PairRM", layers: int = 2, hidden: int = 32, vocab_size: int = 600,
    lengths: tuple[int, int] = (64, 32), spread: float = 0.25, buckets: int = 32,
) -> Path:  # fmt: skip
    """Writes a PairRM of a layout and returns its folder; lengths are the budgets of prompt and candidate in tokens.

    spread: of the random weights; wide enough that logits differ between texts. buckets: of relative positions.
    """
    tokenizer = pairrm_tokenizer(texts, vocab_size)
    # In PairRM the markers are added by whoever loads it, in PairRM-hf they are in the tokenizer.
    base = folder / "base" if layout == "PairRM" else folder
    if layout == "PairRM-hf":
        tokenizer.add_tokens(list(MARKERS))
    config = DebertaV2Config(
        vocab_size=len(tokenizer) + (len(MARKERS) if layout == "PairRM" else 0), hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=4, intermediate_size=2 * hidden, max_position_embeddings=512, relative_attention=True,
        position_buckets=buckets, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0,
        position_biased_input=False, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    network = PairNetwork(config, 1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, spread)
            elif "LayerNorm" not in name:
                weight.normal_(0, spread / 4)
    base.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = config.to_dict()
    if layout == "PairRM-hf":
        ids = dict(zip(MARKERS, tokenizer.convert_tokens_to_ids(list(MARKERS)), strict=True))
        about |= {
            "n_tasks": 1, "drop_out": 0.05, "sep_token_id": tokenizer.sep_token_id, "source_prefix_id": ids[SOURCE],
            "cand1_prefix_id": ids[CANDIDATE1], "cand2_prefix_id": ids[CANDIDATE2], "cand_prefix_id": ids[CANDIDATE],
        }  # fmt: skip
    else:
        ranker = {
            "ranker_type": "pairranker", "model_type": "deberta", "model_name": str(base), "n_tasks": 1, "drop_out": 0.05,
            "source_maxlength": lengths[0], "candidate_maxlength": lengths[1], "fp16": False, "loss_type": "instructgpt",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(ranker))
        # The original loads the weights of the base before its own.
        saved = {name.removeprefix("pretrained_model."): value for name, value in network.state_dict().items()}
        weights = {name: value.contiguous() for name, value in saved.items() if not name.startswith("head_layer")}
        embeddings = "embeddings.word_embeddings.weight"
        weights[embeddings] = weights[embeddings][: len(tokenizer)].clone()
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        about["vocab_size"] = len(tokenizer)
    about["model_type"] = "deberta-v2"
    (base / "config.json").write_text(json.dumps(about))
    tokenizer.save_pretrained(base)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    return folder
