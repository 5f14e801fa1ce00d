"""The rankers by name: how each is opened, and what tells one from another of its kind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handbook_ext.core.artifacts import checkpoint_files, read_manifest, recorded_hash, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.judging.ranker import Ranker
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.parts import ASKED, RANKERS
from handbook_ext.recipes.settings import FITTED, RankSettings

# Each opener imports what it needs: the oracle takes no second, and no other ranker needs a client or a language model.
VERDICTS = ".verdicts.sqlite"
"""The file in a run's folder that keeps the replies of judges."""


@dataclass(frozen=True)
class Bench:
    """What rankers may need besides their settings: the reward model that the run has fitted, its policy, device and folder.

    `asker` is the stage by whose name the replies of an endpoint are accounted for.
    """

    device: torch.device
    run: Path
    fitted: Path | None = None
    policy: PolicySource | None = None
    asker: str = ""


def open_ranker(rank: RankSettings, bench: Bench) -> Ranker:
    """Returns the ranker of a run's settings; raises UserError where it cannot be loaded."""
    return OPENERS[rank.ranker](rank, bench)


def _oracle(rank: RankSettings, bench: Bench) -> Ranker:
    """Returns the tiny world's true reward."""
    from handbook_ext.judging.oracle import Oracle  # noqa: PLC0415

    return Oracle()


def _reward_model(rank: RankSettings, bench: Bench) -> Ranker:
    """Returns the classifier that the recipe names, or that the run has fitted."""
    from handbook_ext.judging.reward_model import RewardModel  # noqa: PLC0415

    common: dict[str, Any] = {
        "device": bench.device, "batch_size": rank.batch_size, "max_length": rank.max_length,
        "tokens_per_batch": rank.tokens_per_batch, "bf16": rank.bf16,
    }  # fmt: skip
    if bench.fitted is not None:
        return RewardModel(str(bench.fitted), **common)
    return RewardModel(str(rank.model), revision=rank.revision, output=rank.output, text=rank.text, **common)


def _self(rank: RankSettings, bench: Bench) -> Ranker:
    """Returns the policy that made the samples, as their judge."""
    from handbook_ext.judging.self_judge import SelfJudge, rubric_text  # noqa: PLC0415
    from handbook_ext.sampling.generation import open_policy  # noqa: PLC0415

    if bench.policy is None:
        raise UserError("rank.ranker: self judges the policy's own samples, and no policy is given here")
    limits = {"max_length": rank.max_length, "long_prompts": "drop"}
    policy, encoder = open_policy(bench.policy, limits, device=bench.device)
    return SelfJudge(policy, encoder.tokenizer, encoder, rubric_text(rank.rubric), rank.max_new_tokens, rank.batch_size)


def _pairrm(rank: RankSettings, bench: Bench) -> Ranker:
    """Returns PairRM on transformers, or the original package."""
    common: dict[str, Any] = {
        "device": bench.device, "batch_size": rank.batch_size, "source_max_length": rank.source_max_length,
        "candidate_max_length": rank.candidate_max_length,
    }  # fmt: skip
    if rank.engine == "llm_blender":
        from handbook_ext.judging.llm_blender_pairrm import LlmBlenderRanker  # noqa: PLC0415

        return LlmBlenderRanker(str(rank.model), **common)
    from handbook_ext.judging.pairrm import PairRM  # noqa: PLC0415

    return PairRM(
        str(rank.model), revision=rank.revision, bf16=rank.bf16, tournament=rank.tournament,
        tokens_per_batch=rank.tokens_per_batch, legacy_truncation=rank.legacy_truncation, **common,
    )  # fmt: skip


def _judge(rank: RankSettings, bench: Bench) -> Ranker:
    """Returns the judge behind an endpoint; its replies are kept in the run's folder."""
    from handbook_ext.judging.endpoint import Endpoint  # noqa: PLC0415
    from handbook_ext.judging.endpoint_judge import EndpointJudge  # noqa: PLC0415
    from handbook_ext.judging.self_judge import rubric_text  # noqa: PLC0415
    from handbook_ext.judging.verdict_cache import VerdictCache  # noqa: PLC0415

    return EndpointJudge(
        str(rank.model), Endpoint(**rank.judge.model_dump(exclude={"kind"})), kind=rank.judge.kind,
        question=rubric_text(rank.rubric), cache=VerdictCache(bench.run / VERDICTS, bench.asker),
    )  # fmt: skip


OPENERS: Mapping[str, Callable[[RankSettings, Bench], Ranker]] = {
    "oracle": _oracle, "reward_model": _reward_model, "pairrm": _pairrm, "judge": _judge, "self": _self,
}  # fmt: skip


def refuse_unfit(rank: RankSettings, fitted: Path | None) -> None:
    """Raises UserError where a reward model that the run fitted cannot, by its held-out pairs, be as right as the recipe asks.

    Where no pairs were held out, nothing is known of it, and nothing refused.
    """
    found = None if fitted is None else read_manifest(fitted).get("held_out")
    if not found:
        return
    from scipy.stats import binomtest  # noqa: PLC0415 - takes a second

    right, pairs = float(found["accuracy"]), int(found["pairs"])
    _, most = binomtest(round(right * pairs), pairs).proportion_ci(method="wilson")
    if most < rank.min_accuracy:
        raise UserError(
            f"rank.min_accuracy: the reward model is right on {right:.1%} of {pairs} held-out pairs, at most {most:.1%} by a 95 %"
            f" interval, below {rank.min_accuracy:.1%}; fit it to more pairs or longer (rank.fit), name another (rank.model), or "
            "set rank.min_accuracy: 0 to let it label"
        )


def external_ranker_hashes(rank: RankSettings, hash_of: Callable[[Path], str] = sha256_of) -> dict[str, str]:
    """Returns the hashes of the local files that a ranker is made of, by the names that a manifest gives them.

    They are the checkpoint in a folder, an adapter's base included, and a question that is a file; none of another kind.
    """
    hashes = {}
    if RANKERS[rank.ranker].reads == "checkpoint" and rank.model is not None and Path(rank.model).is_dir():
        folder = Path(rank.model)
        lines = [f"{os.path.relpath(path, folder)} {hash_of(path)}" for path in checkpoint_files(folder)]
        hashes["ranker"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if rank.ranker in ASKED and rank.rubric is not None and os.path.isfile(rank.rubric):
        hashes["rubric"] = hash_of(Path(rank.rubric))
    return hashes


def ranker_id(rank: RankSettings, fitted: Path | None, external: Mapping[str, str]) -> str:
    """Returns what tells a ranker from others of its kind: rewards of two judges do not compare.

    A checkpoint is called as the recipe names it, with its content (`external` are the hashes of `external_ranker_hashes`) or
    revision, and how much it reads; one that the run fitted, by its hash; a judge by its model and the kind of its question.
    """
    if rank.ranker == "judge":
        return f"{rank.model}, {rank.judge.kind}"
    if RANKERS[rank.ranker].reads != "checkpoint":
        return ""
    if fitted is not None:
        return f"{FITTED}{str(recorded_hash(fitted))[:12]}"
    content = external.get("ranker", "")[:12] or rank.revision
    read = rank.max_length if rank.ranker == "reward_model" else f"{rank.source_max_length}+{rank.candidate_max_length}"
    output = f", output {rank.output}" if rank.output is not None else ""
    return f"{rank.model}{f'@{content}' if content else ''}, {read} tokens{output}"
