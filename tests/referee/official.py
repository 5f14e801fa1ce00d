"""Their side: the official code of SELM in a clone, on the true base class of TRL 0.8.6, patched as it runs.

The clone pins transformers 4.40.2. What stands between it and transformers 5 is patched here and nowhere else, and PATCHES
says what and why; the code that makes pairs, texts, token ids, batches, log-probs and losses runs as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_callback import PrinterCallback

from handbook_ext.core.errors import UserError
from tests.referee.material import RawPair, grade
from tests.referee.records import Ids, Step

PATCHES = (
    "alignment/__init__.py is not run: its model_utils needs names that huggingface_hub no longer has; configs and data are",
    "vllm and llm_blender are stand-ins: the engine returns the given samples, the ranker ranks by the fixed scorer",
    "columns of datasets 5 are lazy: the data set given to generate_response_vllm returns lists, as datasets 2 did",
    "Trainer.__init__(tokenizer=) is passed on as processing_class=, its name in transformers 5",
    "get_batch_samples is Trainer's: TRL 0.8.6 has another method of this name, which transformers 5 would call",
    "compute_loss and log take one argument more, which transformers 5 passes and TRL 0.8.6 does not know",
)


@dataclass
class Official:
    """The modules of a clone: online_feedback.py, alignment.data, alignment.configs and selm_trainer.py."""

    feedback: Any
    data: Any
    configs: Any
    trainer: Any


@dataclass
class Recorded:
    """What the official trainer did: the rows of each micro-batch, their losses and log-probs, and the weights at the end."""

    steps: list[Step] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)


def load_official(clone: Path, trl: Path) -> Official:
    """Returns the modules of a clone over TRL 0.8.6 in a folder; raises UserError where one of the two is not there."""
    for option, path in (
        ("--selm", clone / "scripts" / "selm_trainer.py"),
        ("--trl", trl / "trl" / "trainer" / "dpo_trainer.py"),
    ):
        if not path.is_file():
            raise UserError(f"{option}: {path} does not exist; tests/referee/README.md says what to give")
    if "trl" in sys.modules:
        raise UserError("another TRL is loaded already; run python -m tests.referee, which loads 0.8.6 first")
    sys.path.insert(0, str(trl))
    package = types.ModuleType("alignment")
    package.__path__ = [str(clone / "src" / "alignment")]
    sys.modules["alignment"] = package
    configs = importlib.import_module("alignment.configs")
    for name in ("H4ArgumentParser", "ModelArguments", "DataArguments", "DPOConfig"):
        setattr(package, name, getattr(configs, name))
    sys.modules["vllm"] = types.SimpleNamespace(LLM=None, SamplingParams=dict)  # type: ignore[assignment]
    sys.modules["llm_blender"] = types.SimpleNamespace(Blender=FixedRanker)  # type: ignore[assignment]
    scripts = [_script(clone / "scripts" / name) for name in ("online_feedback.py", "selm_trainer.py")]
    return Official(scripts[0], importlib.import_module("alignment.data"), configs, scripts[1])


def _script(path: Path) -> types.ModuleType:
    """Returns a script as a module."""
    spec = importlib.util.spec_from_file_location(f"official_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--selm: {path} is no Python file; give a clone of shenao-zhang/SELM")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FixedRanker:
    """Stands in for llm_blender.Blender: ranks by the fixed scorer, equal scores share the better rank, as PairRM's do."""

    def loadranker(self, name: str) -> None:
        """Loads nothing."""

    def rank(self, prompts: Sequence[str], candidates: Sequence[Sequence[str]], **kwargs: Any) -> list[list[int]]:
        """Returns ranks, 1 for the best, of each prompt's candidates."""
        scores = [[grade(prompt, text) for text in texts] for prompt, texts in zip(prompts, candidates, strict=True)]
        return [[1 + sum(other > own for other in row) for own in row] for row in scores]


class FixedEngine:
    """Stands in for vllm.LLM: returns the given texts, and keeps the prompts that it was asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Takes the texts, one per prompt."""
        self.texts = texts
        self.asked: list[str] = []

    def generate(self, prompts: Sequence[str], params: Any) -> list[Any]:
        """Returns the texts in vLLM's form."""
        self.asked = list(prompts)
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text=text)]) for text in self.texts]


class Eager:
    """A data set whose columns are lists, as in the version of `datasets` that the official code was written for."""

    def __init__(self, table: datasets.Dataset) -> None:
        """Takes the data set."""
        self.table = table

    def __getitem__(self, name: str) -> list[Any]:
        """Returns a column."""
        return list(self.table[name])

    def add_column(self, name: str, column: list[Any]) -> Eager:
        """Returns the data set with one column more."""
        return Eager(self.table.add_column(name, column))

    def remove_columns(self, names: list[str]) -> Eager:
        """Returns the data set without these columns."""
        return Eager(self.table.remove_columns(names))


def updated_pairs(
    official: Official, tokenizer: PreTrainedTokenizerBase, rows: Sequence[RawPair]
) -> tuple[datasets.Dataset, list[str]]:
    """Returns the rows with chosen, rejected and reference_response by the official rule, and the prompts of the engine."""
    names = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
    table = datasets.Dataset.from_list([{name: row.columns.get(name) for name in names} for row in rows])
    engine = FixedEngine([row.sample for row in rows])
    updated: Eager = official.feedback.generate_response_vllm(engine, tokenizer, Eager(table))
    return updated.table.add_column("row", [row.number for row in rows]), engine.asked


def templated(official: Official, tokenizer: PreTrainedTokenizerBase, updated: datasets.Dataset) -> datasets.Dataset:
    """Returns the texts that run_selm.py gives its trainer, under the names that it gives them."""
    texts = updated.map(
        official.data.apply_chat_template, fn_kwargs={"tokenizer": tokenizer, "task": "selm"},
        remove_columns=["prompt", "chosen", "rejected", "reference_response"],
    )  # fmt: skip
    return texts.rename_columns(
        {"text_prompt": "prompt", "text_chosen": "chosen", "text_rejected": "rejected", "text_response": "reference_response"}
    )


def make_trainer(
    official: Official, model: PreTrainedModel, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    texts: datasets.Dataset, arguments: dict[str, Any], recorded: Recorded,
) -> Any:  # fmt: skip
    """Returns the official trainer over all rows, which it has tokenized; it writes what it does to `recorded`."""
    args = official.configs.DPOConfig(**arguments)
    with _tokenizer_argument():
        trainer = _patched(official.trainer.SELMTrainer, recorded)(
            model, reference, args=args, alpha=args.alpha, beta=args.beta, train_dataset=texts, tokenizer=tokenizer,
            max_length=args.max_length, max_prompt_length=args.max_prompt_length, loss_type=args.loss_type,
        )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def token_ids(trainer: Any) -> list[Ids]:
    """Returns the token ids of each row, after truncation: labels that are ignored are the prompt's."""
    found = []
    for row in trainer.train_dataset:
        sides = []
        for name in ("chosen", "rejected", "reference"):
            size = sum(label == trainer.label_pad_token_id for label in row[f"{name}_labels"])
            ids = row[f"{name}_input_ids"]
            sides.append((ids[:size], ids[size:]))
        (prompt, chosen), (second, rejected), (third, explored) = sides
        # The pair is one prompt with three completions for us: where a merge makes them differ, the texts stand for themselves.
        found.append(Ids(prompt, chosen, rejected, explored, one_prompt=prompt == second == third))
    return found


def _patched(kind: Any, recorded: Recorded) -> Any:
    """Returns SELMTrainer with the methods that transformers 5 calls otherwise, and with notes of what goes in and comes out."""

    class Patched(kind):  # type: ignore[misc]
        get_batch_samples = Trainer.get_batch_samples

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            recorded.rows.append(list(inputs["row"]))
            return super().compute_loss(model, inputs, return_outputs)

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs)

        def optimistic_dpo_loss(self, *logprobs: Any) -> Any:
            result = super().optimistic_dpo_loss(*logprobs)
            recorded.steps.append(Step.of(logprobs, result[0]))
            return result

    return Patched


@contextmanager
def _tokenizer_argument() -> Iterator[None]:
    """Lets Trainer.__init__ take `tokenizer`, which transformers 5 calls processing_class."""
    original = Trainer.__init__

    def renamed(self: Trainer, *args: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        original(self, *args, processing_class=tokenizer, **kwargs)

    with mock.patch.object(Trainer, "__init__", renamed):
        yield
