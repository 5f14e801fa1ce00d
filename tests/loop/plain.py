"""What a test computes for itself: ids and seeds from their definition, log-probs and samples by transformers alone.

Nothing here calls this project, so that a stage and its test cannot share a mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

Json = dict[str, Any]
Text = tuple[str, str]
"""The texts of a prompt and of an answer to it."""


def rows(path: Path) -> list[Json]:
    """The rows of a JSONL file; of a folder, those of all its files."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def manifest(artifact: Path) -> Json:
    """What is recorded of an artifact."""
    path = artifact / "manifest.json" if artifact.is_dir() else artifact.with_suffix(".manifest.json")
    return dict(json.loads(path.read_text()))


def logged_steps(iteration: Path) -> list[Json]:
    """The logged steps of an iteration's training."""
    state = json.loads((iteration / "policy" / "trainer_state.json").read_text())
    return [row for row in state["log_history"] if "loss" in row]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def request_seed(*parts: Any) -> int:
    """63 bits of the hash of what a draw may depend on."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def id_of(row: Json, text: str) -> str:
    """The id of an answer: 16 digits of the hash of prompt id, prompt and answer."""
    parts = (row["prompt_id"], row["prompt"], [{"role": "assistant", "content": text}])
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def question(row: Json) -> str:
    """The prompt of a row of the tiny world, which has one turn."""
    (message,) = row["prompt"]
    return str(message["content"])


def side(row: Json, name: str) -> str:
    """The text of chosen, rejected or explore."""
    (message,) = row[name]
    return str(message["content"])


class PlainPolicy:
    """A policy of a run as anyone would load it: fp32 on the CPU, Zephyr's template written out, batches padded on the right."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, prompt: str) -> list[int]:
        return self.ids(f"<|user|>\n{prompt}</s>\n<|assistant|>\n")

    def log_probs(self, texts: Iterable[Text]) -> tuple[Tensor, Tensor]:
        """Log-probs of the answers, nats, summed over their tokens and the end token; and the numbers of those tokens."""
        pairs = [
            (self.prompt_ids(prompt), self.ids(f"<|user|>\n{prompt}</s>\n<|assistant|>\n{text}</s>")) for prompt, text in texts
        ]
        width = max(len(whole) for _, whole in pairs)
        ids, mask, answer = (torch.zeros(len(pairs), width, dtype=torch.long) for _ in range(3))
        for index, (prompt, whole) in enumerate(pairs):
            assert whole[: len(prompt)] == prompt
            ids[index, : len(whole)] = torch.tensor(whole)
            mask[index, : len(whole)] = 1
            answer[index, len(prompt) : len(whole)] = 1
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        each = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return (each * answer[:, 1:]).sum(1), answer.sum(1)

    def sums(self, texts: Iterable[Text]) -> list[float]:
        with torch.no_grad():
            return [float(value) for value in self.log_probs(texts)[0]]

    @torch.no_grad()
    def sample(self, prompt: str, *, seed: int, temperature: float, top_p: float, tokens: int) -> tuple[str, int, str]:
        """An answer drawn token by token, each by the inverse of the distribution function at a uniform number of its seed.

        Temperature 0 takes the likeliest token; the nucleus are the likeliest tokens that reach `top_p`. Returns the text, its
        tokens with the end token, and why it ended.
        """
        uniform = torch.rand(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ids = self.prompt_ids(prompt)
        drawn: list[int] = []
        for point in uniform:
            logits = self.model(input_ids=torch.tensor([ids + drawn])).logits[0, -1].double()
            if temperature == 0:
                drawn.append(int(logits.argmax()))
            else:
                shares, order = (logits / temperature).softmax(-1).sort(descending=True)
                nucleus = torch.zeros_like(logits)
                kept = shares.cumsum(-1) - shares < top_p
                nucleus[order[kept]] = shares[kept]
                cumulative = nucleus.cumsum(-1)
                drawn.append(int((cumulative <= point * cumulative[-1]).sum()))
            if drawn[-1] == self.tokenizer.eos_token_id:
                break
        ended = drawn[-1] == self.tokenizer.eos_token_id
        text = self.tokenizer.decode(drawn[:-1] if ended else drawn, skip_special_tokens=True).strip()
        return text, len(drawn), "stop" if ended else "length"
