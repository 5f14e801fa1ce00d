"""PairRM by the original package llm-blender 0.0.2, for whoever doubts ours. The only module that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase
from transformers.utils import hub

from handbook_ext.core.errors import UserError
from handbook_ext.judging.pairrm_text import prompt_text
from handbook_ext.judging.ranker import CandidateSet, Verdict
from handbook_ext.policies.fetching import fetched


class LlmBlenderRanker:
    """The original's `rank(..., return_scores=True)`. What it cuts depends on the batch, and it does not say what it has cut."""

    setwise = True

    def __init__(
        self, source: str, *, device: torch.device, batch_size: int, source_max_length: int, candidate_max_length: int
    ) -> None:
        """Loads the ranker onto a device; lengths in tokens, batch_size in prompts. Raises UserError for another layout."""
        # Two names that transformers 5 no longer has: one is imported, the other is what its call is called today.
        if not hasattr(hub, "TRANSFORMERS_CACHE"):
            hub.TRANSFORMERS_CACHE = constants.HF_HUB_CACHE
        if not hasattr(PreTrainedTokenizerBase, "batch_encode_plus"):
            PreTrainedTokenizerBase.batch_encode_plus = PreTrainedTokenizerBase.__call__
        import llm_blender  # noqa: PLC0415 - only now, behind the name above

        folder = fetched(source, None, None, Path()).path
        try:
            self._blender: Any = llm_blender.Blender()
            self._blender.loadranker(str(folder), device=device.type)
        except ValueError as error:
            raise UserError(
                f"rank.model: llm-blender cannot load {source} ({error}); name llm-blender/PairRM, or set "
                "rank.engine: transformers"
            ) from None
        self._options = {
            "batch_size": batch_size, "source_max_length": source_max_length, "candidate_max_length": candidate_max_length,
            "disable_tqdm": True,
        }  # fmt: skip

    def judge(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
        """Returns a verdict per candidate of each set; sets of one size are judged together, since the original asks for that."""
        result: list[list[Verdict]] = [[] for _ in sets]
        for size in sorted({len(each.texts) for each in sets}):
            places = [place for place, each in enumerate(sets) if len(each.texts) == size]
            prompts = [prompt_text(sets[place].prompt) for place in places]
            scores = self._blender.rank(
                prompts, [list(sets[place].texts) for place in places], return_scores=True, **self._options
            )
            for place, own in zip(places, scores.tolist(), strict=True):
                result[place] = [Verdict(score) for score in own]
        return result

    def facts(self) -> dict[str, Any]:
        """Returns nothing: the verdicts say all."""
        return {}
