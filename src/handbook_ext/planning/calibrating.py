"""Measures what this machine computes in a second, through the project's own training, scoring and sampling."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainerCallback, TrainingArguments

from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.planning.calibration import Rates
from handbook_ext.planning.machine_speed import copy_rate, median_seconds, product_rate, resident, start_seconds, write_rate
from handbook_ext.planning.shapes import Shape
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.models import train_tokenizer
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.recipes.settings import ModelSettings
from handbook_ext.sampling.generation import Request, sample_batch
from handbook_ext.training.scoring import score_batch
from handbook_ext.training.trainer import PreferenceTrainer

STEPS = 3  # Optimizer steps timed, behind a first one that is not.
NEW = 16  # Tokens that are sampled.
TEXTS = ["a few words, from which a tokenizer of bytes is trained that pads and decodes"] * 4


@dataclass(frozen=True)
class Size:
    """A policy to measure with: its widths, and pairs of a prompt and three completions, in micro-batches."""

    hidden: int
    layers: int
    vocabulary: int
    prompt: int
    completion: int
    pairs: int
    micro_batch: int
    sampled: int

    @property
    def shape(self) -> Shape:
        """Returns its shape."""
        heads = self.hidden // 32
        return Shape(self.layers, self.hidden, heads, heads // 2, 32, 3 * self.hidden, self.vocabulary, tied=True)

    @property
    def tokens(self) -> int:
        """Returns the tokens of a pair's row."""
        return self.prompt + 3 * self.completion


# The tiny recipes' policy on rows like theirs; two wider ones on rows of chat data.
SIZES = (Size(128, 2, 2048, 18, 11, 32, 8, 128), Size(384, 4, 8192, 60, 60, 4, 1, 32), Size(576, 6, 24576, 60, 60, 4, 1, 32))
ON_GPU = (
    Size(1024, 8, 32768, 100, 200, 32, 8, 64),
    Size(2048, 12, 32768, 100, 200, 32, 8, 64),
    Size(4096, 8, 32768, 100, 200, 32, 8, 64),
)


def measured_rates(device: torch.device, threads: int, say: Callable[[str], None]) -> Rates:
    """Returns the rates of a device; on a CPU with so many threads. `say` is told each figure."""
    libraries = resident()
    sizes = SIZES if device.type == "cpu" else ON_GPU
    memory, disk = copy_rate(device), write_rate()
    say(f"memory {memory / 1e9:.1f} GB/s, disk {disk / 1e6:.0f} MB/s, product {product_rate(device) / 1e9:.1f} GFLOP/s (fp32)")
    training, scoring, sampling = [], [], []
    layer_step = 0.0
    for size in sizes:
        policy = policy_of(size, device)
        if not layer_step:
            layer_step = lone_step(policy, size) / size.layers
        training.append((float(size.hidden), trained_rate(policy, size, device)))
        scoring.append((float(size.hidden), scored_rate(policy, size)))
        sampling.append((float(size.hidden), sampled_rate(policy, size, layer_step, memory)))
        say(
            f"width {size.hidden}: training {training[-1][1] / 1e9:.1f}, scoring {scoring[-1][1] / 1e9:.1f}, sampling "
            f"{sampling[-1][1] / 1e9:.1f} GFLOP/s"
        )
        del policy
    start = start_seconds()
    say(f"a layer's decoding step {layer_step * 1e3:.2f} ms, a stage's start {start:.1f} s, libraries {libraries / 1e6:.0f} MB")
    basis = f"measured here by make calibrate, {time.strftime('%Y-%m-%d %H:%M')}, " + (
        f"{threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    )
    more: dict[str, Any] = {} if device.type == "cpu" else {"libraries": 2e9}
    return Rates(
        basis, training, scoring, sampling, layer_step, memory, disk=disk, start=start, **({"libraries": libraries} | more)
    )


def record_of(rates: Rates) -> dict[str, Any]:
    """Returns rates as the record has them."""
    return asdict(rates)


def policy_of(size: Size, device: torch.device) -> PreTrainedModel:
    """Returns a policy of random weights, with the forward pass of training."""
    shape = size.shape
    config = AutoConfig.for_model(
        "mistral", hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_size,
        vocab_size=shape.vocabulary, tie_word_embeddings=True, max_position_embeddings=4096, sliding_window=None,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return prefix_shared(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")).to(device)


def pairs_of(size: Size) -> list[EncodedPair]:
    """Returns pairs of random tokens whose lengths vary by a quarter around those of the size."""
    rng = random.Random(0)

    def ids(mean: int) -> list[int]:
        """Returns a text of about that many tokens."""
        return [rng.randrange(5, size.vocabulary - 1) for _ in range(round(mean * rng.uniform(0.75, 1.25)))]

    return [EncodedPair(ids(size.prompt), *(ids(size.completion) for _ in range(3))) for _ in range(size.pairs)]


class _Clock(TrainerCallback):
    """Notes when each optimizer step has ended."""

    def __init__(self) -> None:
        """Starts empty."""
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def trained_rate(policy: PreTrainedModel, size: Size, device: torch.device) -> float:
    """Returns the FLOP/s of preference training, by the median of its steps."""
    pairs, clock = pairs_of(size), _Clock()
    lengths, cpu = [len(pair) for pair in pairs], device.type == "cpu"
    plan = BatchPlan(lengths, size.pairs, size.micro_batch, 0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=size.micro_batch, gradient_accumulation_steps=size.pairs // size.micro_batch,
            max_steps=STEPS + 1, learning_rate=1e-5, save_strategy="no", report_to="none", use_cpu=cpu, disable_tqdm=True,
            dataloader_pin_memory=not cpu, bf16=not cpu, logging_steps=1000,
        )  # fmt: skip
        objective = Objective(loss_type="sigmoid", beta=0.1, alpha=0.001)
        PreferenceTrainer(policy, arguments, pairs, plan, objective, pad_id=0, callbacks=[clock]).train()
    seconds = sorted(after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False))[STEPS // 2]
    return 3 * _flops(size, pairs) / seconds


@torch.no_grad()
def scored_rate(policy: PreTrainedModel, size: Size) -> float:
    """Returns the FLOP/s of scoring, in the micro-batches of training."""
    pairs = sorted(pairs_of(size), key=len)
    policy.eval()

    def work() -> None:
        """Scores all pairs once."""
        for start in range(0, len(pairs), size.micro_batch):
            score_batch(policy, pairs[start : start + size.micro_batch], pad_id=0, head_chunk=4096)

    return _flops(size, pairs) / median_seconds(work)


def sampled_rate(policy: PreTrainedModel, size: Size, layer_step: float, memory: float) -> float:
    """Returns the FLOP/s of decoding steps, without what layers and moved bytes take as `time_model` counts them."""
    shape, rows, size_of = size.shape, size.sampled, 4
    step = step_seconds(policy, size, rows)
    context = size.prompt + NEW / 2
    repeats = 2 + 2 * shape.heads / shape.kv_heads
    moved = size_of * shape.weights + repeats * shape.cache_bytes(rows * context, size_of)
    rest = step - shape.layers * layer_step - moved / memory
    # Where the other two terms explain nearly all of it, the products are taken for a quarter of the step.
    return (shape.body_flops(rows, context) + shape.head_flops(rows)) / max(rest, step / 4)


def lone_step(policy: PreTrainedModel, size: Size) -> float:
    """Returns the seconds of a decoding step of one row, which are hardly arithmetic."""
    return step_seconds(policy, size, 1)


def step_seconds(policy: PreTrainedModel, size: Size, rows: int) -> float:
    """Returns the seconds of a decoding step, from sampling NEW tokens and one."""
    settings = ModelSettings(architecture={"model_type": "mistral"}, tokenizer_vocab_size=300, chat_template="zephyr")
    tokenizer = train_tokenizer(TEXTS, settings)
    rng = random.Random(0)
    requests = [Request([rng.randrange(5, size.vocabulary - 1) for _ in range(size.prompt)], seed) for seed in range(rows)]

    def sample(tokens: int) -> float:
        """Returns the seconds in which so many tokens are sampled."""
        return median_seconds(lambda: sample_batch(
            policy, tokenizer, requests, temperature=0.7, top_p=1.0, max_new_tokens=tokens, end_ids=[size.vocabulary - 1],
        ))  # fmt: skip

    whole, first = sample(1 + NEW), sample(1)
    return max(whole - first, whole / 2) / NEW  # The prompts' pass is the smaller part; on a busy machine it may not seem so.


def _flops(size: Size, pairs: list[EncodedPair]) -> float:
    """Returns the FLOPs of a forward pass over the pairs, as `time_model` counts them."""
    tokens = sum(map(len, pairs))
    predicted = sum(len(ids) for pair in pairs for ids in pair.completions)
    return size.shape.body_flops(tokens, size.tokens) + size.shape.head_flops(predicted)
