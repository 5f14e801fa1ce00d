"""Compares lm-evaluation-harness with this project's scoring and sampling: `python -m tests.evaluation.harness_beside POLICY`.

POLICY is a folder with a checkpoint, such as runs/smollm2-selm/start/policy. Two small tasks, made here, are run on it; prints by
how many nats the harness's log-likelihoods differ from those of the project's scoring and of transformers, and how many of its
generated answers differ from the project's. Exits with 1 where log-likelihoods differ by more than 1e-5 nats per token, or where
an answer does.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from handbook_ext.evaluation import harness
from handbook_ext.evaluation.harness import Bench, run_harness
from handbook_ext.evaluation.harness_measures import TaskResult
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.launch import begin
from handbook_ext.policies.models import policy_hash
from handbook_ext.policies.packing import EncodedGroup
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings import ModelSettings
from handbook_ext.recipes.settings_harness import HarnessSettings
from handbook_ext.sampling.generation import Request, sample_batch
from handbook_ext.training.scoring import score_batch
from tests.evaluation.harness_data import own_tasks

CLOSE = 1e-5  # Nats per token, in fp32.


@dataclass(frozen=True)
class Beside:
    """Log-likelihoods of a task's answers, and texts, by the harness and by us; `tokens` of each answer."""

    results: list[TaskResult]
    harness: list[float]
    scoring: list[float]
    transformers: list[float]
    tokens: list[int]
    texts: list[tuple[str, str]]

    def apart(self, ours: list[float]) -> float:
        """Returns the largest difference from the harness, in nats per token."""
        return max(abs(a - b) / n for a, b, n in zip(self.harness, ours, self.tokens, strict=True))


def saved_policy(folder: Path) -> PolicySource:
    """Returns a checkpoint in a folder, in fp32."""
    settings = ModelSettings(name_or_path=str(folder), dtype="float32")
    return PolicySource(str(folder), settings, policy_hash(str(folder), settings), None)


def beside(source: PolicySource, folder: Path) -> Beside:
    """Returns what the harness finds on the two tasks, and what we find in ways that share none of its code."""
    asked: dict[str, Any] = {}
    real = harness.evaluated

    def watched(opened: Any, model: Any, settings: HarnessSettings) -> dict[str, Any]:
        """Keeps the harness's requests with their answers."""
        found = real(opened, model, settings)
        asked[opened.name] = opened.task.instances
        return found

    harness.evaluated = watched
    try:
        settings = HarnessSettings.model_validate(
            {"tasks": {"own_choice": {"num_fewshot": 2}, "own_text": {"num_fewshot": 2}}, "batch_size": 3,
             "include_path": str(own_tasks(folder / "tasks"))}
        )  # fmt: skip
        results = run_harness(source, settings, Bench(begin(), 0, folder / "workspace", folder / "kept"))
    finally:
        harness.evaluated = real
    tokenizer = source.load_tokenizer()
    pairs = [_ids(tokenizer, *each.args) for each in asked["own_choice"]]
    scoring, policy = prefix_shared(source.load()), source.load()
    groups = [EncodedGroup(prompt, [end]) for prompt, end in pairs]
    ours = [value for group in groups for (value,) in score_batch(scoring, [group], pad_id=0, head_chunk=4096)]
    theirs = [_plain(policy, *pair) for pair in pairs]
    contexts = [each.args[0] for each in asked["own_text"]]
    samples = sample_batch(
        policy, tokenizer, [Request(tokenizer(text)["input_ids"], 0) for text in contexts], temperature=0, top_p=1,
        max_new_tokens=8, end_ids=[tokenizer.eos_token_id],
    )  # fmt: skip
    texts = [each.resps[0].strip() for each in asked["own_text"]]
    cut = [sample.text.partition("\n")[0].strip() for sample in samples]
    return Beside(
        results, [each.resps[0][0] for each in asked["own_choice"]], ours, theirs, [len(end) for _, end in pairs],
        list(zip(texts, cut, strict=True)),
    )  # fmt: skip


def _ids(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Returns the ids of a context, and of what a continuation adds to them."""
    prompt = tokenizer(context)["input_ids"]
    return prompt, tokenizer(context + continuation)["input_ids"][len(prompt) :]


@torch.no_grad()
def _plain(policy: Any, prompt: list[int], end: list[int]) -> float:
    """Returns the log-prob of a continuation by transformers' own forward pass, one sequence at a time."""
    logprobs = policy(torch.tensor([prompt + end])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[len(prompt) + place - 1, token]) for place, token in enumerate(end))


def main() -> int:
    """Compares, prints, and returns 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path, metavar="POLICY")
    with tempfile.TemporaryDirectory() as folder:
        found = beside(saved_policy(parser.parse_args().policy), Path(folder))
    apart = {"the project's scoring": found.apart(found.scoring), "transformers": found.apart(found.transformers)}
    for name, nats in apart.items():
        print(f"{len(found.harness)} log-likelihoods: at most {nats:.1e} nats per token from {name}")
    differing = sum(a != b for a, b in found.texts)
    print(f"{len(found.texts)} generated answers, {differing} of them unlike the project's; the first: {found.texts[0][0]!r}")
    return int(max(apart.values()) > CLOSE or differing > 0)


if __name__ == "__main__":
    raise SystemExit(main())
