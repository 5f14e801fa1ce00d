"""The shape of a model: its weights and what a token costs, from its configuration or a table of published ones. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import json_object
from handbook_ext.core.errors import UserError
from handbook_ext.graph.rule import policy_artifact
from handbook_ext.planning.hub import snapshot
from handbook_ext.recipes.architecture import misfit
from handbook_ext.recipes.run import Run

# Families whose feed-forward part has two matrices and whose linear layers have biases; those of all others are taken to have
# three (a gate) and none.
PLAIN_FAMILIES = ("gpt_neox", "gpt2", "opt", "phi", "bloom", "bert", "roberta", "deberta-v2", "distilbert", "mpt")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """A transformer: layers, widths, heads and vocabulary, how the sizes are known, and its weights where they are stated."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    gated: bool = True
    tied: bool = False
    stated: int | None = None
    basis: str = "assumed"

    @property
    def layer_weights(self) -> int:
        """Returns the weights of a layer: four projections, the feed-forward part, two norms and, where it has them, biases."""
        wide, narrow = self.heads * self.head_size, self.kv_heads * self.head_size
        matrices = 2 * self.hidden * (wide + narrow) + (3 if self.gated else 2) * self.hidden * self.intermediate
        biases = 0 if self.gated else wide + 2 * narrow + 2 * self.hidden + self.intermediate
        return matrices + biases + (2 if self.gated else 4) * self.hidden

    @property
    def head_weights(self) -> int:
        """Returns the weights of the language-model head, or of the embedding, which are the same where they are tied."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """Returns how many weights the model has."""
        if self.stated is not None:
            return self.stated
        final = self.hidden * (1 if self.gated else 2)
        return self.layers * self.layer_weights + (1 if self.tied else 2) * self.head_weights + final

    def body_flops(self, tokens: float, length: float) -> float:
        """Returns the FLOPs of all layers, forward, for tokens in rows of a length: products with weights and with keys.

        Attention under our mask, and over padding, computes every query with every key of its row.
        """
        attention = 4 * self.heads * self.head_size * length
        return tokens * self.layers * (2 * self.layer_weights + attention)

    def head_flops(self, tokens: float) -> float:
        """Returns the FLOPs of the language-model head, forward."""
        return 2 * tokens * self.head_weights

    def cache_bytes(self, tokens: float, size: int) -> float:
        """Returns the bytes of keys and values of so many tokens, in numbers of `size` bytes."""
        return 2 * tokens * self.layers * self.kv_heads * self.head_size * size

    def adapter_weights(self, rank: int, target_modules: list[str] | None) -> int:
        """Returns the weights of low-rank adapters on the linear layers named; None is all of them."""
        wide, narrow = self.heads * self.head_size, self.kv_heads * self.head_size
        sides = {"q_proj": self.hidden + wide, "k_proj": self.hidden + narrow, "v_proj": self.hidden + narrow}
        sides |= {"o_proj": self.hidden + wide, "up_proj": self.hidden + self.intermediate}
        sides |= {"down_proj": self.hidden + self.intermediate}
        sides |= {"gate_proj": self.hidden + self.intermediate} if self.gated else {}
        chosen = sides if target_modules is None else {name: sides[name] for name in target_modules if name in sides}
        return self.layers * rank * sum((chosen or sides).values())


def _published(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, **more: Any) -> Shape:
    """Returns a shape of the table."""
    basis = "the published config.json (table in planning/shapes.py)"
    return Shape(layers, hidden, heads, kv_heads, hidden // heads, intermediate, vocabulary, basis=basis, **more)


# By hub id, from the config.json there; a checkpoint that is here is read instead. Tests hold their weights against the published
# numbers.
MISTRAL_7B = _published(32, 4096, 32, 8, 14336, 32000)
SHAPES: Mapping[str, Shape] = {
    "HuggingFaceH4/mistral-7b-sft-beta": MISTRAL_7B,
    "alignment-handbook/zephyr-7b-sft-full": MISTRAL_7B,
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "weqweasdas/RM-Mistral-7B": MISTRAL_7B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _published(32, 4096, 32, 8, 14336, 128256),
    "microsoft/Phi-3-mini-4k-instruct": _published(32, 3072, 32, 32, 8192, 32064),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": _published(22, 2048, 32, 4, 5632, 32000),
    "EleutherAI/pythia-2.8b": _published(32, 2560, 32, 32, 10240, 50304, gated=False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _published(30, 576, 9, 3, 1536, 49152, tied=True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _published(32, 960, 15, 5, 2560, 49152, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _published(24, 2048, 32, 32, 8192, 49152, tied=True),
    "sentence-transformers/all-MiniLM-L6-v2": _published(6, 384, 12, 12, 1536, 30522, gated=False, tied=True, stated=22_713_216),
    # DeBERTa-v3-large with PairRM's head; its position embeddings are shared by the layers.
    "llm-blender/PairRM": _published(24, 1024, 16, 16, 4096, 128100, gated=False, tied=True, stated=436_000_000),
}  # fmt: skip


def policy_shape(run: Run, folder: Path) -> Shape:
    """Returns the shape of a run's policy: by its architecture, a checkpoint that is here, or the table.

    Raises UserError where none of them is known.
    """
    model = run.settings.model
    if model.architecture is not None:
        values = dict(model.architecture) | {"vocab_size": model.tokenizer_vocab_size}
        return shape_of(values, "the recipe's architecture")
    made = policy_artifact(run, run.start)
    places = [folder / made] if made else []
    return named_shape(str(model.name_or_path), model.revision, "model.name_or_path", places)


def named_shape(name: str, revision: str | None, setting: str, places: list[Path] | None = None) -> Shape:
    """Returns the shape of a checkpoint by name: of a folder, one of `places`, the hub's cache, or the table.

    Raises UserError, which names the setting, where it is in none of them.
    """
    cached = snapshot("models", name, revision)
    for place in [*(places or []), Path(name), *([cached] if cached is not None else [])]:
        config = json_object(place / "config.json")
        if config is not None:
            return shape_of(config, f"{place}/config.json")
    if name in SHAPES:
        return SHAPES[name]
    raise UserError(
        f"{setting}: the shape of '{name}' is not known: it is neither a folder with a config.json, nor in the hub's cache, nor "
        f"one of {', '.join(sorted(SHAPES))}; fetch its config.json once where there is a network, or name a local folder"
    )


def shape_of(config: Mapping[str, Any], basis: str) -> Shape:
    """Returns the shape that a configuration of transformers describes; `basis` says where it is from.

    Raises UserError for a mixture of experts, or a configuration without the numbers.
    """
    if any(config.get(name) for name in EXPERTS):
        raise UserError(f"{basis}: a mixture of experts, whose memory and time this plan does not know; plan a dense model")
    fault = misfit(config)
    if fault is not None:
        raise UserError(f"{basis}: {fault}; no such model can be built, so correct it")
    try:
        hidden = int(config.get("hidden_size") or config["n_embd"])
        heads = int(config.get("num_attention_heads") or config["n_head"])
        plain = config.get("model_type") in PLAIN_FAMILIES
        return Shape(
            layers=int(config.get("num_hidden_layers") or config["n_layer"]), hidden=hidden, heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads), head_size=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden),
            vocabulary=int(config["vocab_size"]), gated=not plain,
            tied=bool(config.get("tie_word_embeddings", config.get("model_type") in ("gpt2", "gemma", "gemma2"))), basis=basis,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{basis}: {error} is missing or no number; give a checkpoint whose config.json has it") from None
