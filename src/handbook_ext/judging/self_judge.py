"""The policy as its own judge (SRLM, arXiv 2401.10020): it is asked for 0 to 5 points, which are parsed from its reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages
from handbook_ext.core.shards import batched
from handbook_ext.data.rubric import TINY_RUBRIC, parse_points, render
from handbook_ext.judging.ranker import Pointwise, Verdict
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.conversations import conversation
from handbook_ext.sampling.generation import Request, sample_batch


def rubric_text(name: str | None) -> str | None:
    """Returns the Jinja text that `rank.rubric` names: a file, `tiny`, or None for the default. Raises UserError for no file."""
    if name is None or name == "tiny":
        return None if name is None else TINY_RUBRIC
    if not Path(name).is_file():
        raise UserError(f"rank.rubric: {name!r} is neither `tiny` nor a file; give a Jinja file with prompt and response")
    return Path(name).read_text(encoding="utf-8")


@dataclass
class SelfJudge(Pointwise):
    """Asks a policy for points, decoded greedily; a judgement without readable points is a failed verdict.

    rubric: the Jinja text of the question, None for the default.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: ChatEncoder
    rubric: str | None
    max_new_tokens: int
    batch_size: int

    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Returns a verdict per prompt and completion, with 0 to 5 points by the rubric; one too long to ask about is failed."""
        questions = [render(conversation(prompt), text, self.rubric) for prompt, text in items]
        ids = [self.encoder.prompt_ids([{"role": "user", "content": each}], "a judgement") for each in questions]
        # Questions of similar length share a batch, so that little padding is computed.
        order = sorted((index for index, each in enumerate(ids) if each is not None), key=lambda index: len(ids[index] or []))
        verdicts = [Verdict(0.0, failed=True)] * len(items)
        for indices in batched(order, self.batch_size):
            samples = sample_batch(
                self.policy, self.tokenizer, [Request(ids[index] or [], 0) for index in indices], temperature=0.0, top_p=1.0,
                max_new_tokens=self.max_new_tokens, end_ids=self.encoder.end_ids(),
            )  # fmt: skip
            for index, sample in zip(indices, samples, strict=True):
                points = parse_points(sample.text)
                verdicts[index] = Verdict(0.0, failed=True) if points is None else Verdict(points)
        return verdicts
