"""What attention costs on prefix-shared rows on a CPU: additive dense mask, boolean dense mask, segments without a mask.

    .venv/bin/python -m tests.policies.attention_cost --lengths 128,256,512,1024,2048,4096 --threads 1

Forward and backward pass of 4,096 tokens in rows of one length (a third prompt, the rest two completions), SmolLM2-135M's
widths with 4 of its 30 layers and 4,096 words, fp32. Processor seconds and growth of memory, medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from unittest import mock

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from handbook_ext.bench.measuring import timed
from handbook_ext.policies import forward, segments
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.packing import EncodedPair, PackedRows, may_attend, pack

VOCABULARY = 4096


def main() -> None:
    """Prints one line per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="128,256,512,1024,2048,4096", metavar="N,...", help="tokens of a row")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model = prefix_shared(LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, attn_implementation="sdpa",
    )))  # fmt: skip
    print("| tokens | rows | additive mask: s, MiB | boolean mask | segments | time | memory |\n|---|---|---|---|---|---|---|")
    for length in map(int, arguments.lengths.split(",")):
        rows = rows_of(length, max(1, 8192 // length // 2))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in MASKS}
        for number in range(arguments.rounds + 1):
            for name, mask in MASKS.items():
                with mock.patch.object(forward, "attention_mask", mask):
                    measured = timed(partial(step, model, rows))
                if number:  # The first round warms up.
                    found[name].append(measured)
        seconds = {name: statistics.median(each["cpu_seconds"] for each in runs) for name, runs in found.items()}
        peaks = {name: statistics.median(each["peak_bytes"] for each in runs) / 2**20 for name, runs in found.items()}
        cells = " | ".join(f"{seconds[name]:.2f}, {peaks[name]:.0f}" for name in MASKS)
        ratios = f"{seconds['additive'] / seconds['segments']:.2f}x | {peaks['additive'] / peaks['segments']:.2f}x"
        print(f"| {length} | {len(rows.input_ids)} | {cells} | {ratios} |", flush=True)


def rows_of(length: int, count: int) -> PackedRows:
    """Returns rows of random words."""
    draw = torch.Generator().manual_seed(length)
    prompt = length // 3
    chosen = (length - prompt) // 2
    ids = torch.randint(3, VOCABULARY, (count, length), generator=draw).tolist()
    pairs = [EncodedPair(row[:prompt], row[prompt : prompt + chosen], row[prompt + chosen :]) for row in ids]
    return pack(pairs, pad_id=0)


def step(model: PreTrainedModel, rows: PackedRows) -> float:
    """Forward and backward pass."""
    model.zero_grad(set_to_none=True)
    loss = model(rows=rows).mean()
    loss.backward()
    return loss.item()


def additive(model: PreTrainedModel, rows: PackedRows) -> torch.Tensor:
    """The mask before: L^2 entries of the weights' type."""
    allowed = may_attend(rows)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def by_segments(model: PreTrainedModel, rows: PackedRows) -> torch.Tensor:
    """No mask, whatever the length."""
    with mock.patch.object(segments, "MIN_LENGTH", 0):
        codes = segments.segment_mask(rows)
    assert codes is not None
    return codes


MASKS = {"additive": additive, "boolean": lambda model, rows: may_attend(rows), "segments": by_segments}

if __name__ == "__main__":
    main()
