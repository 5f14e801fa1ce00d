"""Who judges completions: the tiny world's true reward, or any reward model that is a sequence classifier."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from handbook_ext.core.artifacts import checkpoint_files, recorded_hash, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Candidate, Completion, Messages, OfflinePair, Origin, Ranking, assistant
from handbook_ext.data.tiny_world import true_reward
from handbook_ext.recipes.settings import FITTED, RANKERS_HERE, RankSettings


@dataclass(frozen=True)
class Verdict:
    """A ranker's score of one completion; larger is better.

    `truncated`: it did not see the whole text. `failed`: it gave no readable judgement, and `score` means nothing.
    """

    score: float
    truncated: bool = False
    failed: bool = False


class Unjudged(NamedTuple):
    """A candidate before its judgement: who wrote it, the number of its sample, its text and its id."""

    origin: Origin
    sample: int | None
    text: str
    completion_id: str


class Ranker(Protocol):
    """Scores completions, each independently of the others."""

    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Returns the verdict on each (prompt, completion)."""
        ...


class Oracle:
    """The tiny world's true reward."""

    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Returns true rewards, at most 1."""
        return [Verdict(true_reward(prompt[-1]["content"], text)) for prompt, text in items]


class RewardModel:
    """A sequence classifier with one output, and a chat template."""

    def __init__(
        self, source: str, *, device: torch.device, batch_size: int, max_length: int, revision: str | None = None
    ) -> None:
        """Loads the classifier; max_length is in tokens of prompt and completion, whose end is kept (`kept_end`)."""
        # Imported here: it takes seconds, and the oracle needs none of it.
        from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

        from handbook_ext.policies.conversations import kept_end  # noqa: PLC0415
        from handbook_ext.policies.models import without_dropout  # noqa: PLC0415
        from handbook_ext.policies.text_tokens import TextTokens  # noqa: PLC0415

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            model = AutoModelForSequenceClassification.from_pretrained(source, revision=revision)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"rank.model: {source} cannot be loaded as a sequence classifier ({first})") from None
        if model.config.num_labels != 1:
            raise UserError(f"rank.model: {source} has {model.config.num_labels} outputs; a reward model has one")
        if not tokenizer.chat_template:
            raise UserError(f"rank.model: the tokenizer of {source} has no chat template; use a reward model that has one")
        without_dropout(model.config)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer, self.text = model.eval().to(device), tokenizer, TextTokens(tokenizer)
        self.batch_size, self.max_length = batch_size, max_length
        self._kept = partial(kept_end, tokenizer, max_length=max_length)

    @torch.no_grad()
    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        """Returns the classifier's logits; texts of similar length share a batch, so that little is padded."""
        ids = judged_ids(self.text, items)
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        verdicts: dict[int, Verdict] = {}
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            kept = {"input_ids": [self._kept(ids[place]) for place in places]}
            batch = self.tokenizer.pad(kept, return_tensors="pt").to(self.model.device)
            scores = self.model(**batch).logits[:, 0].float().tolist()
            for place, score in zip(places, scores, strict=True):
                verdicts[place] = Verdict(score, len(ids[place]) > self.max_length)
        return [verdicts[place] for place in range(len(items))]


def judged_ids(text: Any, items: Sequence[tuple[Messages, str]]) -> list[list[int]]:
    """Returns the token ids of prompts with a completion each as a reward model reads them; `text` is its TextTokens."""
    ids: list[list[int]] = text.ids([text.render([*prompt, *assistant(answer)]) for prompt, answer in items])
    return ids


def make_ranker(
    kind: str, source: str | None, *, device: torch.device, batch_size: int, max_length: int, revision: str | None = None
) -> Ranker:
    """Returns the ranker that a recipe names; raises UserError for one that this version does not have."""
    if kind == "oracle":
        return Oracle()
    if kind == "reward_model" and source is not None:
        return RewardModel(source, device=device, batch_size=batch_size, max_length=max_length, revision=revision)
    raise UserError(f"rank.ranker: {kind!r} is not part of this version; it has: {', '.join(RANKERS_HERE)}")


def open_ranker(rank: RankSettings, fitted: Path | None, *, device: torch.device) -> Ranker:
    """Returns the ranker of a run's settings; `fitted` is the reward model that the run made, where the recipe names none."""
    return make_ranker(
        rank.ranker, str(fitted) if fitted else rank.model, device=device, batch_size=rank.batch_size,
        max_length=rank.max_length, revision=rank.revision,
    )  # fmt: skip


def ranking(prompt_id: str, prompt: Messages, candidates: Sequence[tuple[Unjudged, Verdict]]) -> Ranking:
    """Returns the candidates with ranks: 1 is the largest score, equal scores share the better rank."""
    scores = [-math.inf if verdict.failed else verdict.score for _, verdict in candidates]
    ranked = [
        Candidate(
            origin=candidate.origin, sample=candidate.sample, text=candidate.text, completion_id=candidate.completion_id,
            score=verdict.score, truncated=verdict.truncated, failed=verdict.failed,
            rank=1 + sum(score > own for score in scores),
        )
        for (candidate, verdict), own in zip(candidates, scores, strict=True)
    ]  # fmt: skip
    ties = sum(scores.count(score) > 1 for score in scores)
    return Ranking(prompt_id=prompt_id, prompt=prompt, candidates=ranked, ties=ties)


def candidates_of(samples: list[Completion], offline: OfflinePair | None) -> list[Unjudged]:
    """Returns a prompt's candidates in the order of the official code: samples, then the offline chosen and rejected, if any."""
    found = [Unjudged("on_policy", row.sample, row.text, row.completion_id) for row in samples]
    sides = [] if offline is None else [offline.chosen_answer, offline.rejected_answer]
    return found + [Unjudged("offline", None, side.text, side.completion_id) for side in sides]


def external_ranker_hashes(rank: RankSettings, hash_of: Callable[[Path], str] = sha256_of) -> dict[str, str]:
    """Returns the hashes of the local files that a ranker is made of, by the names that a manifest gives them.

    They are the reward model in a folder, an adapter's base included, and a rubric that is a file; none of another kind.
    """
    hashes = {}
    if rank.ranker == "reward_model" and rank.model is not None and Path(rank.model).is_dir():
        folder = Path(rank.model)
        lines = [f"{os.path.relpath(path, folder)} {hash_of(path)}" for path in checkpoint_files(folder)]
        hashes["ranker"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if rank.ranker == "self" and rank.rubric is not None and os.path.isfile(rank.rubric):
        hashes["rubric"] = hash_of(Path(rank.rubric))
    return hashes


def ranker_id(rank: RankSettings, fitted: Path | None, external: Mapping[str, str]) -> str:
    """Returns what tells a ranker from others of its kind: rewards of two judges do not compare.

    A reward model is called as the recipe names it, with its content (`external` are the hashes of `external_ranker_hashes`) or
    revision, and how much it reads; one that the run fitted, by its hash.
    """
    if rank.ranker != "reward_model":
        return ""
    if fitted is not None:
        return f"{FITTED}{str(recorded_hash(fitted))[:12]}"
    content = external.get("ranker", "")[:12] or rank.revision
    return f"{rank.model}{f'@{content}' if content else ''}, {rank.max_length} tokens"
