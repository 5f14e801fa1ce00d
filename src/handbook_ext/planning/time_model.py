"""Seconds of a stage, from its FLOPs, the bytes that it moves and measured or assumed rates. No torch.

README.md beside this file states the model, and how its figures compare with measured seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from handbook_ext.planning.calibration import Rates, at_width
from handbook_ext.planning.shapes import Shape
from handbook_ext.planning.sharding import Sharding

PER_ROW = 1e-4  # Seconds in which a row is read, rendered, tokenised or written; measured on the tiny world's data stage.
UPDATE = 28  # Bytes that Adam moves for a weight: weight, gradient and two moments read, three of them written.
CPU_UPDATE = 5e10  # Bytes per second of main memory, all processes together, in an offloaded update; assumed.
PER_SAVE = 0.3  # Seconds of a checkpoint besides its bytes.


@dataclass(frozen=True)
class Training:
    """What trains: micro-batches per process, optimizer steps, and of one micro-batch the tokens, row length and predictions."""

    micro_batches: float
    steps: int
    tokens: float
    length: float
    predicted: float
    saves: int = 0


def training_seconds(
    shape: Shape, sharding: Sharding, rates: Rates, work: Training, *, checkpointing: bool, trained: int | None, saved: float
) -> float:  # fmt: skip
    """Returns the seconds of a training: products, the launch's communication where it does not hide, updates, checkpoints.

    trained: weights of adapters, None where all train; saved: bytes of a checkpoint.
    """
    passes = (2 if trained is not None else 3) + checkpointing
    flops = passes * shape.body_flops(work.tokens, work.length) + 3 * shape.head_flops(work.predicted)
    own = shape.weights if trained is None else trained
    computed = flops / at_width(rates.training, shape.hidden)
    moved, updated = 0.0, UPDATE * own / sharding.shared(1) / rates.memory
    others = (sharding.processes - 1) / sharding.processes
    if not sharding.on_cpu:
        if sharding.stage == 3:
            moved = others * 2 * (3 * shape.weights + own) / rates.link
        elif sharding.stage == 2:
            moved = others * 2 * own / rates.link
        if sharding.offload_weights:
            moved += 3 * 2 * shape.weights / sharding.processes / rates.host_link
        if sharding.offload_optimizer:
            updated = 4 * own / sharding.processes / rates.host_link + UPDATE * own / CPU_UPDATE
        elif sharding.stage < 3:
            updated += others * (8 if sharding.stage == 0 else 2) * own / rates.link
    return (
        work.micro_batches * max(computed, moved) + work.steps * updated + work.saves * (PER_SAVE + saved / rates.disk)
    )  # fmt: skip


def scoring_seconds(shape: Shape, rates: Rates, tokens: float, length: float, predicted: float) -> float:
    """Returns the seconds of forward passes over tokens in rows of a length, of which some meet the LM head."""
    return (shape.body_flops(tokens, length) + shape.head_flops(predicted)) / at_width(rates.scoring, shape.hidden)


def sampling_seconds(
    shape: Shape, rates: Rates, *, batches: float, rows: float, distinct: float, prompt: float, new: float, steps: float,
    size: int,
) -> float:  # fmt: skip
    """Returns the seconds of sampling with transformers: batches of rows, their distinct prompts' pass, then decoding.

    new: tokens of a completion; steps: of a batch's longest. Each step has the costs of a step, each token those of a row.
    """
    speed = at_width(rates.sampling, shape.hidden)
    first = (shape.body_flops(distinct * prompt, prompt) + shape.head_flops(distinct)) / at_width(rates.scoring, shape.hidden)
    step = shape.layers * rates.layer_step + size * shape.weights / rates.memory
    context = prompt + new / 2
    # A row's cache is written anew (a read and a write), and repeated for all heads.
    repeats = 2 + 2 * (shape.heads / shape.kv_heads if shape.heads != shape.kv_heads else 0)
    moved = repeats * shape.cache_bytes(context, size) / rates.memory
    token = (shape.body_flops(1, context) + shape.head_flops(1)) / speed + moved
    # Rows that have ended, but wait for others to leave with, are a twentieth more: bench/README.md. They are not counted.
    return batches * (first + steps * step + rows * new * token)


def vllm_seconds(
    shape: Shape, rates: Rates, *, requests: float, at_once: float, prompt: float, new: float, size: int, split: int
) -> float:  # fmt: skip
    """Returns the seconds of one vLLM engine: its start, the prompts' pass, and steps of as many requests as it takes at once."""
    first = (shape.body_flops(requests * prompt, prompt) + shape.head_flops(requests)) / at_width(rates.scoring, shape.hidden)
    rows = min(at_once, requests)
    context = prompt + new / 2
    moved = size * shape.weights + shape.cache_bytes(rows * context, size)
    products = shape.body_flops(rows, context) / at_width(rates.sampling, shape.hidden)
    step = shape.layers * rates.layer_step / 4 + max(products, moved / rates.memory) / split  # Captured graphs, not Python.
    return rates.engine + first / split + requests * new / max(rows, 1) * step


def reading_seconds(rates: Rates, weights_bytes: float) -> float:
    """Returns the seconds in which a checkpoint is read."""
    return weights_bytes / (2 * rates.disk)
