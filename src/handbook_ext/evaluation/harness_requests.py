"""A model as lm-evaluation-harness asks it, whose requests the processes of a launch share and whose answers are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from handbook_ext.core.records import content_id, derived_seed
from handbook_ext.core.shards import batched, forget_other_shards
from handbook_ext.evaluation.shares import in_shares
from handbook_ext.policies.launch import Launch


class TaskCannotRunError(Exception):
    """What keeps one task from being run with this policy, in one line; the other tasks go on."""


class SharedRequests:
    """Stands before one of the harness's models: each process answers its share of the requests, and all get every answer.

    Every process sees the whole task, so that exemplars and results do not depend on how many there are, as they would with the
    harness's own way. Finished shards of requests are kept in the folder: a task that was killed goes on from them.
    `rank` and `world_size` are what the harness asks for: to it, each process is alone.
    """

    rank, world_size = 0, 1

    def __init__(self, model: Any, folder: Path, launch: Launch, *, task: str, shard: int, seed: int) -> None:
        """Takes a model of the harness, the folder of the task, and how many requests a shard has."""
        self.model, self.folder, self.launch = model, folder, launch
        self.task, self.shard, self.seed = task, shard, seed
        self.truncated = 0

    @property
    def tokenizer_name(self) -> str:
        """Returns the name of the tokenizer."""
        return str(self.model.tokenizer_name)

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns messages as text, in the policy's chat template."""
        return str(self.model.apply_chat_template(messages, add_generation_prompt=add_generation_prompt))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns for each (context, continuation) the continuation's log-prob (nats), and whether greedy decoding gives it."""
        for request in requests:
            context, continuation = request.args
            self._count(context + continuation, room=self.model.max_length + 1)
            if self._tokens(continuation, most=self.model.max_length) > self.model.max_length:
                raise TaskCannotRunError(f"an answer is longer than the policy's context of {self.model.max_length} tokens")
        return [(float(value), bool(greedy)) for value, greedy in self._answers("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Returns the log-prob (nats) of each whole text."""
        return [float(value) for value in self._answers("loglikelihood_rolling", requests)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns the text that continues each context, up to the stop sequences and the number of tokens of its request."""
        for request in requests:
            context, options = request.args
            new = int(options.get("max_gen_toks", self.model.max_gen_toks))
            if new >= self.model.max_length:
                raise TaskCannotRunError(
                    f"it generates up to {new} tokens, which the policy's context of {self.model.max_length} has no room for"
                )
            self._count(context, room=self.model.max_length - new)
        return [str(text) for text in self._answers("generate_until", requests)]

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        """Returns the model's answers to all requests, in their order, in every process."""
        # The longest first, so that what does not fit in memory fails at once; equal contexts together, whose pass is shared.
        order = sorted(range(len(requests)), key=lambda index: (-len(requests[index].args[0]), requests[index].args[0], index))
        shards, folder = batched(order, self.shard), self.folder / kind
        # A data set on the hub may have changed since the shards were made.
        self.launch.first_alone(
            lambda: forget_other_shards(folder, [self.shard, *(content_id(*request.args) for request in requests)])
        )
        answer: Callable[..., list[Any]] = getattr(self.model, kind)

        def answered(shard: list[int]) -> list[dict[str, Any]]:
            """Returns the rows of a shard."""
            # For tasks that sample: their draws depend on the shard alone. NumPy takes 32 bits.
            set_seed(derived_seed(self.seed, self.task, shard[0]) % 2**32)
            found = answer([requests[index] for index in shard], disable_tqdm=True)
            return [{"request": index, "answer": each} for index, each in zip(shard, found, strict=True)]

        rows = in_shares(folder, shards, answered, self.launch, f"harness {self.task}")
        found = {row["request"]: row["answer"] for row in rows}
        return [found[index] for index in range(len(requests))]

    def _count(self, text: str, room: int) -> None:
        """Counts a text of which the harness will drop the beginning, since only its last `room` tokens fit."""
        self.truncated += self._tokens(text, most=room) > room

    def _tokens(self, text: str, most: int) -> int:
        """Returns the tokens of a text; where it has so few bytes that they cannot be more than `most`, its bytes instead."""
        size = len(text.encode()) + 1  # Byte-level and byte-fallback tokenizers make one token of a byte at most; BOS.
        return size if size <= most else len(self.model.tok_encode(text))
