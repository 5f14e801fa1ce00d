"""Sampling by rows beside transformers' own loop: seconds, memory, and the token positions that the policy computes.

Prompts and completions have log-normal lengths like chat; the same requests, lengths and seeds for both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from handbook_ext.bench import measuring
from handbook_ext.bench.measuring import LengthDistribution
from handbook_ext.sampling.decoding import Law, Limits, by_batch, by_rows

WAYS = {"rows": by_rows, "batch": by_batch}
SAMPLES = (1, 2, 5)
END, FIRST_WORD = 2, 5
TINY = {
    "model_type": "mistral", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048, "sliding_window": None,
}  # fmt: skip
SMOLLM2 = {  # With a third of its layers, for time.
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 10, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49_152,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is sampled: `requests` in batches, prompts from `shortest` to `longest` tokens, a mean and a most of new tokens."""

    model: Mapping[str, Any]
    requests: int
    batch: int
    shortest: int
    longest: int
    completion: LengthDistribution
    max_new_tokens: int


class LengthsLaw(Law):
    """Draws as another law does, but each request ends after its own number of tokens, and no sooner."""

    def __init__(self, law: Law, lengths: Sequence[int], end: int) -> None:
        """lengths: of each request, its end token included."""
        self.law, self.end = law, end
        self.lengths = torch.tensor(lengths)

    def tokens(self, scores: Tensor, step: int, requests: Tensor | slice = slice(None)) -> Tensor:
        """Returns the tokens (R,) that these requests take at a step."""
        scores = scores.index_fill(1, torch.tensor([self.end], device=scores.device), -torch.inf)
        ends = (self.lengths == step + 1).to(scores.device)[requests]
        return torch.where(ends, self.end, self.law.tokens(scores, step, requests))


@dataclass
class Positions:
    """Token positions, padding included, that went through a policy: in passes over prompts, and in steps of one token."""

    prompt: int = 0
    decoded: int = 0
    steps: int = 0


@contextmanager
def counted(policy: PreTrainedModel) -> Iterator[Positions]:
    """Yields the positions that a policy computes inside the context."""
    found = Positions()

    def note(module: torch.nn.Module, given: Any, keywords: dict[str, Any]) -> None:
        """Adds the positions of a forward pass."""
        rows, length = keywords["input_ids"].shape
        if length > 1:
            found.prompt += rows * length
        else:
            found.decoded, found.steps = found.decoded + rows, found.steps + 1

    hook = policy.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def cases(*, quick: bool) -> dict[str, Case]:
    """Returns what is measured, by name."""
    if quick:
        return {"tiny": Case(TINY, 10, 10, 4, 12, LengthDistribution(4, 0.8), 8)}
    return {
        "tiny": Case(TINY, 120, 60, 32, 512, LengthDistribution(60, 0.8), 256),
        "smollm2": Case(SMOLLM2, 10, 10, 32, 512, LengthDistribution(24, 0.8), 64),
    }


def policy_of(model: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """Returns a policy of random weights in fp32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        **model, max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=END
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def measure(case: Case, samples: int, seed: int, rounds: int, tick: Callable[[], object]) -> dict[str, Any]:
    """Returns seconds, memory and positions of both ways in interleaved rounds, and how many completions differ."""
    policy, rng = policy_of(case.model, seed), random.Random(seed)
    count = case.requests // samples
    # Evenly spaced on a logarithmic scale, sorted as requests are.
    sizes = [round(case.shortest * (case.longest / case.shortest) ** ((place + 0.5) / count)) for place in range(count)]
    prompts = [[rng.randrange(FIRST_WORD, case.model["vocab_size"]) for _ in range(size)] for size in sizes]
    asked = [prompt for prompt in prompts for _ in range(samples)]
    lengths = [min(length, case.max_new_tokens + 1) for length in case.completion.grid(len(asked))]
    rng.shuffle(lengths)
    limits = Limits(case.max_new_tokens, [END], 0)

    def sample(way: Callable[..., list[list[int]]]) -> list[list[int]]:
        """Returns the completions of all requests, batch by batch."""
        found = []
        for start in range(0, len(asked), case.batch):
            part = slice(start, start + case.batch)
            drawn = Law(range(len(asked))[part], temperature=0.7, top_p=1.0, steps=limits.max_new_tokens, device=policy.device)
            found += way(policy, asked[part], LengthsLaw(drawn, lengths[part], END), limits)
        return [tokens[:length] for tokens, length in zip(found, lengths, strict=True)]

    raw: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    positions, completions = {}, {}
    for name, way in WAYS.items():  # The first round warms up, counts and compares.
        with counted(policy) as positions[name]:
            completions[name] = sample(way)
        tick()
    for number in range(rounds):
        for name in list(WAYS)[:: 1 if number % 2 else -1]:
            raw[name].append(measuring.timed(partial(_timed, sample, WAYS[name])))
            tick()
    pairs = zip(completions["rows"], completions["batch"], strict=True)
    return {
        "weights": policy.num_parameters(), "raw": raw, "positions": {name: asdict(each) for name, each in positions.items()},
        "needed": sum(min(length, case.max_new_tokens) - 1 for length in lengths), "requests": len(asked),
        "differing": sum(ours != theirs for ours, theirs in pairs),
        "speed_up": measuring.spread(
            [batch["cpu_seconds"] / rows["cpu_seconds"] for batch, rows in zip(raw["batch"], raw["rows"], strict=True)]
        ),
    }  # fmt: skip


def _timed(sample: Callable[[Callable[..., Any]], list[list[int]]], way: Callable[..., Any]) -> float:
    """Returns the number of tokens that a way samples."""
    return float(sum(map(len, sample(way))))


def table_of(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns the table: a row per case and number of samples, of each way before and after."""
    table = Table("case", "prompt positions", "decoded positions", "needed", "CPU s", "speed-up", "peak MiB", "differing")
    for case, numbers in found.items():
        both = [numbers["positions"][name] for name in ("batch", "rows")]
        raw = [numbers["raw"][name] for name in ("batch", "rows")]
        seconds = [measuring.spread([each["cpu_seconds"] for each in rounds])["median"] for rounds in raw]
        peaks = [max(each["peak_bytes"] for each in rounds) / 2**20 for rounds in raw]
        positions = [f"{both[0][kind]:,} -> {both[1][kind]:,}" for kind in ("prompt", "decoded")]
        table.add_row(
            f"{case} ({numbers['weights'] / 1e6:.1f} M)", *positions, f"{numbers['needed']:,}",
            f"{seconds[0]:.2f} -> {seconds[1]:.2f}", f"{numbers['speed_up']['median']:.2f}x",
            f"{peaks[0]:.0f} -> {peaks[1]:.0f}", f"{numbers['differing']} of {numbers['requests']}",
        )  # fmt: skip
    return table
