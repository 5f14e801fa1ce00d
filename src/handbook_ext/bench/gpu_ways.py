"""What `make bench-gpu` compares: shapes of policies, and the ways to train them, ours and TRL's."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from handbook_ext.bench.measuring import LengthDistribution, PairDistribution
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.kernels import use_kernels


@dataclass(frozen=True)
class Shape:
    """An architecture with random weights, and the batch that it trains on; `pairs` is one optimizer step's global batch."""

    architecture: Mapping[str, Any]
    pairs: int
    micro_batch: int
    micro_batch_tokens: int
    lora: bool = False
    lengths: tuple[float, float, int] = (120, 280, 1024)
    """Median tokens of prompts and of completions in the manner of UltraFeedback, and the longest sequence."""

    @property
    def distribution(self) -> PairDistribution:
        """Returns the lengths and words of the pairs."""
        prompt, completion, longest = self.lengths
        return PairDistribution(
            prompt=LengthDistribution(prompt, 0.9), completion=LengthDistribution(completion, 0.7), max_length=longest,
            vocabulary=self.architecture["vocab_size"],
        )  # fmt: skip

    def build(self, attention: str, *, trainable: bool = True) -> PreTrainedModel:
        """Returns the policy, the same weights at each call; fp32, or under adapters bf16 as they leave it frozen."""
        values = dict(self.architecture)
        config = AutoConfig.for_model(values.pop("model_type"), **values, pad_token_id=0, bos_token_id=1, eos_token_id=1)
        torch.manual_seed(0)
        dtype = torch.bfloat16 if self.lora and torch.cuda.is_available() else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
        return model.train(trainable)


def _llama(hidden: int, mlp: int, layers: int, heads: int, keys: int, words: int, **more: Any) -> dict[str, Any]:
    """Returns an architecture of the Llama family."""
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": words, "max_position_embeddings": 8192,
        "tie_word_embeddings": False, **more,
    }  # fmt: skip


SHAPES = {
    "tiny": Shape(_llama(64, 128, 2, 2, 1, 256), pairs=8, micro_batch=4, micro_batch_tokens=400, lengths=(20, 40, 192)),
    "tiny-lora": Shape(
        _llama(64, 128, 2, 2, 1, 256), pairs=8, micro_batch=4, micro_batch_tokens=400, lora=True, lengths=(20, 40, 192)
    ),
    "smollm2-135m": Shape(
        _llama(576, 1536, 30, 9, 3, 49_152, tie_word_embeddings=True), pairs=128, micro_batch=16, micro_batch_tokens=32_768
    ),
    "tinyllama-1.1b": Shape(_llama(2048, 5632, 22, 32, 4, 32_000), pairs=64, micro_batch=8, micro_batch_tokens=16_384),
    # All weights, gradients and fp32 copies of 7 billion weights do not fit one GPU: adapters on frozen weights.
    "mistral-7b": Shape(
        _llama(4096, 14_336, 32, 32, 8, 32_000, model_type="mistral", sliding_window=None), pairs=32, micro_batch=4,
        micro_batch_tokens=8192, lora=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a step is taken: by us or by TRL, and with what."""

    ours: bool
    attention: str = "sdpa"
    by_tokens: bool = False
    torch_compile: bool = False
    liger: bool = False
    live: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def lack(self, device: str) -> str | None:
        """Returns why it cannot run here, or None."""
        if device == "cpu" and self.attention != "sdpa":
            return f"{self.attention} trains on a GPU only"
        if device == "cpu" and (self.liger or self.torch_compile):
            return "for a GPU"
        if self.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
            return "the package flash_attn is not installed"
        if self.liger and importlib.util.find_spec("liger_kernel") is None:
            return "the package liger_kernel is not installed"
        return None


PRECOMPUTED = {"precompute_ref_log_probs": True}
WAYS = {
    "ours, sdpa": Way(True),
    "ours, sdpa, by tokens": Way(True, by_tokens=True),
    "ours, flex": Way(True, "flex_attention"),
    "ours, flex, by tokens": Way(True, "flex_attention", by_tokens=True),
    "ours, flex, by tokens, compiled": Way(True, "flex_attention", by_tokens=True, torch_compile=True),
    "ours, flex, by tokens, Liger": Way(True, "flex_attention", by_tokens=True, liger=True),
    "ours, sdpa, Liger": Way(True, liger=True),
    "TRL, live reference": Way(False, live=True),
    "TRL, precomputed": Way(False, settings=PRECOMPUTED),
    "TRL, precomputed, flash attention": Way(False, "flash_attention_2", settings=PRECOMPUTED),
    "TRL, precomputed, padding-free": Way(False, "flash_attention_2", settings={**PRECOMPUTED, "padding_free": True}),
    "TRL, precomputed, Liger": Way(False, liger=True, settings={**PRECOMPUTED, "use_liger_kernel": True}),
    "TRL, precomputed, flash, Liger": Way(
        False, "flash_attention_2", liger=True, settings={**PRECOMPUTED, "use_liger_kernel": True}
    ),
}


def policy_of(shape: Shape, way: Way) -> Any:
    """Returns the policy that a way trains."""
    model = shape.build(way.attention)
    if way.ours:
        use_kernels(prefix_shared(model), torch_compile=way.torch_compile, liger=way.liger)
    if not shape.lora:
        return model
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))


def useful_flops(shape: Shape, pairs: Any, model: torch.nn.Module) -> float:
    """Returns the FLOPs that a step needs, whatever a way computes: weights times tokens, each prompt once, no padding.

    Six per weight and token, for the forward pass and the gradients of states and weights; four where the weights are frozen.
    The LM head meets completion tokens alone; attention's products are left out.
    """
    base = model.get_base_model() if shape.lora else model  # type: ignore[operator]
    head = base.get_output_embeddings().weight.numel()
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    total = sum(weight.numel() for name, weight in base.named_parameters() if "lora_" not in name)
    body = total - head - (0 if tied else base.get_input_embeddings().weight.numel())
    predicted = sum(len(ids) for pair in pairs for ids in pair.completions)
    return (4 if shape.lora else 6) * float(body * sum(map(len, pairs)) + head * predicted)
