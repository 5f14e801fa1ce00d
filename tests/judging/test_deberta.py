"""DeBERTa read at a few places: transformers' hidden states there, with padding and in blocks of queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, DebertaV2Config, DebertaV2Model

from handbook_ext.judging import deberta
from handbook_ext.judging.deberta import DebertaReader, readable


def config(**more: Any) -> DebertaV2Config:
    options: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
        "max_position_embeddings": 64, "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0, "position_biased_input": False,
        "pad_token_id": 0, **more,
    }  # fmt: skip
    return DebertaV2Config(**options)


@pytest.mark.parametrize("block", [1, 7, 128])
@pytest.mark.parametrize("more", [{}, {"position_buckets": -1}, {"norm_rel_ebd": "none"}, {"max_relative_positions": 20}])
def test_states_are_those_of_transformers(block: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deberta.BLOCKS, "cpu", block)
    torch.manual_seed(0)
    model = DebertaV2Model(config(**more)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    # Longer than the buckets tell apart, and than the positions that training had.
    lengths = torch.tensor([90, 33, 4])
    mask = (torch.arange(90)[None] < lengths[:, None]).long()
    ids = torch.randint(1, 50, (3, 90)) * mask
    places = torch.tensor([[1, 40, 89], [0, 30, 32], [3, 2, 1]])
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state[torch.arange(3)[:, None], places]
        found = DebertaReader(model).read(ids, mask, places)
        alone = DebertaReader(model).read(ids[2:, :4], mask[2:, :4], places[2:])
    assert wanted.std() > 0.1
    assert found == pytest.approx(wanted, abs=2e-5)
    assert alone[0] == pytest.approx(found[2], abs=2e-5)


def test_other_encoders_are_not_read_here() -> None:
    assert readable(config())
    for more in ({"share_att_key": False}, {"pos_att_type": ["c2p"]}, {"conv_kernel_size": 3}, {"relative_attention": False}):
        assert not readable(config(**more)), more
    kind = BertConfig(hidden_size=8, num_attention_heads=1)
    kind.relative_attention, kind.share_att_key, kind.pos_att_type = True, True, ["c2p", "p2c"]
    assert not readable(kind)
