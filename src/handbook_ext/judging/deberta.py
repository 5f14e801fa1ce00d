"""DeBERTa (arXiv 2006.03654) read at a few places only: the same hidden states as transformers' encoder, in less time.

Three things are spared. What the weights alone decide, the projections of the relative positions, is computed once. The weights
of the attention are never whole in memory: a block of queries at a time goes through torch's fused kernel, with the position
terms as its bias. The last layer is computed where it is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

BLOCKS = {"cpu": 128}
"""Queries whose attention is computed at once, by device; few enough on a CPU for its caches."""
BLOCK = 1024


def readable(config: Any) -> bool:
    """Tells whether an encoder is of the kind that is read here, DeBERTa v3's; others go through transformers."""
    return (
        config.model_type == "deberta-v2"
        and config.relative_attention
        and getattr(config, "share_att_key", False)
        and set(config.pos_att_type or []) == {"c2p", "p2c"}
        and not getattr(config, "conv_kernel_size", 0)
    )


class DebertaReader:
    """Reads hidden states of an encoder's last layer. Built when the encoder is where it stays: weights must not change after."""

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        """Takes transformers' DebertaV2Model, for which `readable` holds, and projects its relative positions."""
        self.model: Any = model
        encoder = self.model.encoder
        first = encoder.layer[0].attention.self
        self.heads, self.span = first.num_attention_heads, first.pos_ebd_size
        self.most = first.max_relative_positions
        self.buckets = first.position_buckets
        self.scale = (3 * first.attention_head_size) ** -0.5  # Three terms: content, content to position, position to content.
        relative = encoder.get_rel_embedding()[None, : 2 * self.span]
        self.positions = [
            (self._split(own.query_proj(relative)), self._split(own.key_proj(relative)))
            for own in (layer.attention.self for layer in encoder.layer)
        ]

    def read(self, ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        """Returns the last hidden states at `places` (rows, n) of ids (rows, tokens): (rows, n, hidden)."""
        hidden = self.model.embeddings(input_ids=ids, mask=mask)
        tokens = torch.arange(ids.shape[1], device=ids.device)
        padding = None if bool(mask.all()) else ~mask.bool()[:, None, None, :]
        layers = list(zip(self.model.encoder.layer, self.positions, strict=True))
        everywhere = self._buckets_of(tokens[None], tokens)
        for layer, positions in layers[:-1]:
            hidden = self._layer(layer, positions, hidden, hidden, everywhere, padding)
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        return self._layer(*layers[-1], hidden, hidden[rows, places], self._buckets_of(places, tokens), padding)

    def _layer(
        self, layer: Any, positions: tuple[Tensor, Tensor], hidden: Tensor, asking: Tensor, buckets: Tensor,
        padding: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Returns a layer's output for the states that ask, (rows, n, hidden), of all states, (rows, tokens, hidden)."""
        own = layer.attention.self
        query = self._split(own.query_proj(asking))
        key, value = self._split(own.key_proj(hidden)), self._split(own.value_proj(hidden))
        context = self._attention(query, key, value, positions, buckets, padding)
        attended = layer.attention.output(context.transpose(1, 2).flatten(2), asking)
        result: Tensor = layer.output(layer.intermediate(attended), attended)
        return result

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, positions: tuple[Tensor, Tensor], buckets: Tensor, padding: Tensor | None
    ) -> Tensor:  # fmt: skip
        """Returns what each query attends to, (rows, heads, n, size): A_ij ~ q_i k_j + q_i kr_b(i-j) + k_j qr_b(i-j)."""
        position_query, position_key = positions
        to_position = (query * self.scale) @ position_key.transpose(-1, -2)
        from_position = (key * self.scale) @ position_query.transpose(-1, -2)
        block = BLOCKS.get(query.device.type, BLOCK)
        result = torch.empty_like(query)
        for start in range(0, query.shape[2], block):
            asked = slice(start, start + block)
            own = buckets[:, :, asked].expand(*query.shape[:2], -1, -1)
            bias = to_position[:, :, asked].gather(-1, own)
            bias += from_position.gather(-1, own.transpose(-1, -2)).transpose(-1, -2)
            if padding is not None:
                bias.masked_fill_(padding, float("-inf"))
            result[:, :, asked] = scaled_dot_product_attention(query[:, :, asked], key, value, attn_mask=bias, scale=self.scale)
        return result

    def _buckets_of(self, asking: Tensor, tokens: Tensor) -> Tensor:
        """Returns the numbers of the relative positions from places (rows, n) to tokens: (rows, 1, n, tokens)."""
        distance = torch.arange(1 - len(tokens), len(tokens), device=tokens.device)
        if self.buckets > 0:
            distance = make_log_bucket_position(distance, self.buckets, self.most).long()
        number = (distance + self.span).clamp(0, 2 * self.span - 1)
        return number[asking[:, None, :, None] - tokens + len(tokens) - 1]

    def _split(self, states: Tensor) -> Tensor:
        """Returns states (rows, tokens, hidden) by heads: (rows, heads, tokens, size)."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
