"""What the tests of the model side share: a tokenizer and tiny policies made in code, and rows of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from handbook_ext.core.records import Messages, PreferencePair, assistant

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

torch.set_num_threads(1)
torch.set_flush_denormal(True)

TEXTS = [
    "Write me a list of fruit for a picnic by the lake, please, and keep it short.",
    "Here is a list: apples, pears, plums and a bowl of cherries. Enjoy the picnic!",
    "What should I pack for the winter? Warm socks, a lamp, bread, and a good book.",
    "I do not know, but the answer may be in the book that you packed for the lake.",
]

BuildPolicy = Callable[..., "PreTrainedModel"]
Arguments = Callable[..., "TrainingArguments"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the Zephyr template."""
    from handbook_ext.policies.models import train_tokenizer
    from handbook_ext.recipes.settings import ModelSettings

    settings = ModelSettings(architecture={"model_type": "llama"}, tokenizer_vocab_size=320, dtype="float32")
    return train_tokenizer(TEXTS * 2, settings)


@pytest.fixture(scope="session")
def build(tokenizer: PreTrainedTokenizerFast) -> BuildPolicy:
    """Returns a function (architecture, seed, attn_implementation) -> policy of two layers in fp32.

    The weights are large, so that attention and head matter; the configuration asks for dropout, which must not come.
    """
    from handbook_ext.policies.models import build_policy
    from handbook_ext.recipes.settings import ModelSettings

    def make(kind: str = "llama", seed: int = 0, attention: str = "sdpa", **values: Any) -> PreTrainedModel:
        architecture: dict[str, Any] = {
            "model_type": kind, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 256, "initializer_range": 0.2, "attention_dropout": 0.3, **values,
        }  # fmt: skip
        if kind != "gpt_neox":
            architecture.setdefault("num_key_value_heads", 1)
        settings = ModelSettings(
            architecture=architecture, tokenizer_vocab_size=320, dtype="float32", attn_implementation=attention
        )
        policy = build_policy(settings, tokenizer, seed)
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(0, 0.1)
        return policy

    return make


@pytest.fixture(scope="session")
def make_pairs() -> Callable[[int], list[PreferencePair]]:
    """Returns a function count -> pairs: one and two turns, explore chosen, rejected, neither and absent in turn."""

    def make(count: int) -> list[PreferencePair]:
        return [_pair(number) for number in range(count)]

    return make


def _pair(number: int) -> PreferencePair:
    """The pair of a number; texts of different lengths."""
    words = " ".join(TEXTS).split()

    def words_from(start: int, length: int) -> str:
        return " ".join(words[(start + i) % len(words)] for i in range(length))

    prompt: Messages = [{"role": "user", "content": words_from(3 * number, 2 + number % 5)}]
    if number % 2:
        prompt = [*prompt, *assistant(words_from(5 * number, 3)), {"role": "user", "content": words_from(number, 2)}]
    chosen, rejected, third = (assistant(words_from(7 * number + 11 * k, 1 + (number * (k + 2) + k) % 7)) for k in range(3))
    pair = PreferencePair.of(f"p{number}", prompt, chosen, rejected, [chosen, rejected, third, None][number % 4])
    return pair.model_copy(update={"rejected_origin": "on_policy"})


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    """Returns a function of changes -> training arguments: 8 pairs a step in micro-batches of 2, a log line per step."""
    from transformers import TrainingArguments

    def make(**changes: Any) -> TrainingArguments:
        values: dict[str, Any] = {
            "output_dir": str(tmp_path / "checkpoints"), "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
            "learning_rate": 1e-2, "num_train_epochs": 2, "lr_scheduler_type": "cosine", "warmup_steps": 0.2,
            "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "seed": 7,
            "dataloader_pin_memory": False, "disable_tqdm": True,
        }  # fmt: skip
        return TrainingArguments(**(values | changes))

    return make
