"""Bytes that a stage holds at most on a device and in main memory, by part, from a stated model. No torch.

README.md beside this file states the model, and how its figures compare with measured peaks. Legend: W weights, T of them
trained, P processes, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from handbook_ext.planning.shapes import Shape
from handbook_ext.planning.sharding import Sharding
from handbook_ext.planning.space import ADAM, MOMENTS, SAVED
from handbook_ext.recipes.settings import LoraSettings, ModelSettings

# DeepSpeed's defaults, which no launch file changes, in elements: what it gathers ahead, its buckets, and how much of its share a
# process updates at once.
LIVE_WEIGHTS, BUCKET, SUB_GROUP = 1e9, 5e8, 1e9
VLLM_ROOM = 1.5e9  # Bytes that vLLM needs besides weights and cache: activations of a full batch, captured graphs. Assumed.


@dataclass(frozen=True)
class Rows:
    """A micro-batch as the model sees it: rows, the tokens of each with padding, and the positions that meet the LM head."""

    rows: int
    length: float
    predicted: float

    @property
    def tokens(self) -> float:
        """Returns the positions of the micro-batch."""
        return self.rows * self.length


@dataclass(frozen=True)
class Numbers:
    """Bytes of a number: of weights as they are loaded, of the stream between layers, and of products within them."""

    weight: int
    stream: int
    product: int


@dataclass
class Memory:
    """Bytes by part on each device, and in the machine's main memory over all processes."""

    device: dict[str, float] = field(default_factory=dict)
    main: dict[str, float] = field(default_factory=dict)

    @property
    def on_device(self) -> float:
        """Returns the bytes of a device."""
        return sum(self.device.values())

    @property
    def in_main(self) -> float:
        """Returns the bytes of main memory."""
        return sum(self.main.values())


def numbers_of(model: ModelSettings, sharding: Sharding, *, bf16: bool) -> Numbers:
    """Returns the types in training and scoring: as `policies.launch` loads weights, under autocast or DeepSpeed's bf16."""
    weight = SAVED[model.dtype] if sharding.deepspeed or model.lora is not None else 4
    product = 2 if bf16 or weight == 2 else 4  # Autocast computes products in bf16 and leaves the stream in the type of weights.
    return Numbers(weight, weight, product)


def policy_states(
    shape: Shape, model: ModelSettings, sharding: Sharding, *, optim: str, bf16: bool, trained: int | None = None
) -> Memory:  # fmt: skip
    """Returns weights, gradients, optimizer and what the launch adds, in training; `trained` are the weights of adapters."""
    weights, adapters = shape.weights, trained is not None
    own = shape.weights if trained is None else trained
    numbers, processes = numbers_of(model, sharding, bf16=bf16), sharding.processes
    moments = MOMENTS.get(optim, ADAM)
    found = Memory()
    place = found.main if sharding.offload_weights else found.device
    place["weights"] = numbers.weight * weights / (1 if sharding.offload_weights else sharding.shared(3))
    # DeepSpeed keeps gradients in the type of weights, others in that of the trained ones: fp32.
    gradient, state = (numbers.weight if sharding.deepspeed else 4), moments + (4 if sharding.deepspeed else 0)
    if sharding.offload_optimizer:
        found.main["optimizer"], found.main["gradients"] = state * own, (gradient + 4) * own
    else:
        found.device["gradients"] = gradient * own / sharding.shared(2)
        found.device["optimizer"] = state * own / sharding.shared(1)
    extra = 0.0
    if sharding.deepspeed:
        extra = 2 * min(BUCKET, own)
        extra += 2 * min(LIVE_WEIGHTS, weights) if sharding.stage == 3 else 2 * min(BUCKET, own)
        if not sharding.offload_optimizer:  # The gradient in fp32 of what is updated at once.
            extra += 4 * min(SUB_GROUP, own / processes)
    elif sharding.stage == 3:  # FSDP2: two layers and the root (embedding, head) in bf16, their gradients before they are shared.
        gathered = 2 * shape.layer_weights + shape.head_weights * (1 if shape.tied else 2)
        extra = (2 + (0 if adapters else 4)) * gathered
    elif processes > 1:
        extra = 4.0 * own  # DDP's buckets.
    if bf16 and not sharding.deepspeed and not adapters and sharding.stage < 3:
        extra += 2 * weights  # Autocast's bf16 copies, kept through the forward pass.
    if extra:
        found.device["communication and copies"] = extra
    return found


def layer_bytes(shape: Shape, numbers: Numbers) -> float:
    """Returns the bytes that a layer keeps of a token for the backward pass, by transformers' own layers with sdpa."""
    wide, narrow, product = shape.heads * shape.head_size, shape.kv_heads * shape.head_size, numbers.product
    # Two sums of the stream; of two norms the input in fp32 and the output, once more where autocast casts it for each product.
    norms = 2 * numbers.stream + 2 * (4 + numbers.stream) + (5 * product if product != numbers.stream else 0)
    # Query, keys and values, both of these repeated for all heads; what attention gives, and its copy for the projection.
    attention = product * (3 * wide + 2 * narrow + 2 * wide)
    return norms * shape.hidden + attention + product * (4 if shape.gated else 2) * shape.intermediate


def activations(
    shape: Shape, numbers: Numbers, batch: Rows, *, checkpointing: bool, training: bool = True
) -> float:  # fmt: skip
    """Returns the bytes of the layers' activations: all layers', or with checkpointing their inputs and one layer's."""
    layer = batch.tokens * layer_bytes(shape, numbers)
    at_once = 0.5 * layer  # The gradients within the layer that the backward pass is in; without one, what a layer computes with.
    if not training:
        return at_once + 2 * batch.tokens * shape.hidden * numbers.stream
    if checkpointing:
        return shape.layers * batch.tokens * shape.hidden * numbers.stream + layer + at_once
    return shape.layers * layer + at_once


def mask_bytes(numbers: Numbers, batch: Rows) -> float:
    """Returns the bytes of the prefix-shared mask, rows x length^2, with the comparisons from which it is made."""
    return batch.rows * batch.length**2 * (2 * numbers.stream + 1)


def logits_bytes(shape: Shape, numbers: Numbers, positions: float, *, training: bool = True) -> float:
    """Returns the bytes of logits in fp32 with their softmax and, in training, the gradients of both."""
    copies = 8 + (numbers.product if numbers.product != 4 else 0)
    return positions * shape.vocabulary * (copies * (2 if training else 1) - (4 if training else 0))


def training_memory(
    shape: Shape, model: ModelSettings, sharding: Sharding, batch: Rows, *, optim: str, bf16: bool, checkpointing: bool,
    head_chunk: int, masked: bool = True,
) -> Memory:  # fmt: skip
    """Returns what preference training holds, or without a mask what SFT does, whose rows have neither mask nor padding."""
    trained = adapters_of(shape, model.lora)
    numbers = numbers_of(model, sharding, bf16=bf16)
    found = policy_states(shape, model, sharding, optim=optim, bf16=bf16, trained=trained)
    found.device["activations"] = activations(shape, numbers, batch, checkpointing=checkpointing)
    if masked:
        found.device["activations"] += mask_bytes(numbers, batch)
    found.device["logits"] = logits_bytes(shape, numbers, min(batch.predicted, head_chunk))
    return found


def scoring_memory(
    shape: Shape, model: ModelSettings, sharding: Sharding, batch: Rows, *, bf16: bool, head_chunk: int
) -> Memory:  # fmt: skip
    """Returns what scoring holds: on each device the whole policy, in the type of training, whatever the launch shards."""
    numbers = numbers_of(model, sharding, bf16=bf16)
    found = Memory({"weights": numbers.weight * float(shape.weights)})
    if bf16 and numbers.weight == 4:
        found.device["communication and copies"] = 2.0 * shape.weights
    found.device["activations"] = activations(shape, numbers, batch, checkpointing=False, training=False) + mask_bytes(
        numbers, batch
    )
    found.device["logits"] = logits_bytes(shape, numbers, min(batch.predicted, head_chunk), training=False)
    return found


def sampling_memory(
    shape: Shape, size: int, *, rows: int, distinct: int, prompt: float, new: int, sampled: bool
) -> Memory:  # fmt: skip
    """Returns what sampling with transformers holds: weights of `size` bytes, a cache of padded rows, the first pass, logits.

    distinct: prompts of the batch, which alone go through the first pass.
    """
    numbers, cache = Numbers(size, size, size), shape.cache_bytes(rows * (prompt + new), size)
    found = Memory({"weights": float(size * shape.weights), "cache": cache})
    # A step writes a layer's cache anew, and repeats it for all heads.
    repeated = shape.heads / shape.kv_heads if shape.heads != shape.kv_heads else 0
    copied = cache / shape.layers * (1 + repeated)
    first = activations(shape, numbers, Rows(distinct, prompt, distinct), checkpointing=False, training=False)
    found.device["activations"] = max(copied, first)
    # Sampling adds the softmax and its sum in fp64, and scores that are one token each.
    found.device["logits"] = rows * shape.vocabulary * (size + 4 + (8 + 8 + 4 if sampled else 4))
    return found


def vllm_memory(shape: Shape, size: int, *, split: int, longest: float, device: float, share: float) -> Memory:
    """Returns what vLLM takes of a device: its share of it, or more where weights and one longest sequence need more."""
    weights = size * shape.weights / split
    needed = weights + VLLM_ROOM + shape.cache_bytes(longest, size) / split
    return Memory({"weights": weights, "cache": max(share * device, needed) - weights})


def judging_memory(shape: Shape, size: int, batch: Rows) -> Memory:
    """Returns what an encoder or reward model holds that judges a batch, in numbers of `size` bytes."""
    numbers = Numbers(size, size, size)
    return Memory({
        "weights": float(size * shape.weights),
        "activations": activations(shape, numbers, batch, checkpointing=False, training=False),
    })  # fmt: skip


def adapters_of(shape: Shape, lora: LoraSettings | None) -> int | None:
    """Returns the trained weights of adapters; None where all weights train."""
    return None if lora is None else shape.adapter_weights(lora.r, lora.target_modules)
