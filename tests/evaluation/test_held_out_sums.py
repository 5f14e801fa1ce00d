"""Implicit rewards of held-out completions: log pi - log pi_initial by hand, each policy in shards of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.records import Answer, assistant, completion_id, user
from handbook_ext.evaluation.implicit_reward import ScoredCompletion, _groups, held_out_sums, implicit_rewards
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings import ModelSettings

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

LAUNCH = Launch(0, 1, torch.device("cpu"))
TEXTS = {"chosen": "warm bread", "rejected": "a lamp", "sample": "bread and warm socks by the lake"}


def scored(prompt: str, side: str) -> ScoredCompletion:
    """A completion whose reward is its length."""
    made, text = user(prompt), TEXTS[side]
    answer = Answer(assistant(text), completion_id(prompt, made, assistant(text)), "offline")
    return ScoredCompletion(prompt, made, side, answer, float(len(text)))


COMPLETIONS = [scored(prompt, side) for side in TEXTS for prompt in ("a lake", "what is warm and what is not")]


@pytest.fixture
def sources(tmp_path: Path, build: BuildPolicy, tokenizer: PreTrainedTokenizerFast) -> list[PolicySource]:
    """Two policies of different weights."""
    found = []
    for seed in (0, 9):
        folder = tmp_path / f"policy{seed}"
        build(seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found.append(PolicySource(str(folder), ModelSettings(name_or_path=str(folder), dtype="float32"), str(seed), None))
    return found


def by_hand(source: PolicySource, encoder: ChatEncoder, each: ScoredCompletion) -> tuple[float, int]:
    """Log-prob of a completion, from all logits of a row of its own, and its tokens."""
    prompt = encoder.prompt_ids(each.prompt, "") or []
    ids = encoder.completion_ids(each.prompt, each.answer.messages, len(prompt))
    with torch.no_grad():
        logits = source.load()(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(ids)), ids].sum()), len(ids)


def test_implicit_rewards_are_log_ratios_of_the_policy_to_the_initial_one(sources: list[PolicySource], tmp_path: Path) -> None:
    encoder = sources[0].encoder({"max_length": 90})
    folder = tmp_path / "work"
    ours, theirs = (
        held_out_sums(source, COMPLETIONS, encoder, LAUNCH, folder, name)
        for source, name in zip(sources, ("the policy", "its initial policy"), strict=True)
    )
    rows = implicit_rewards(COMPLETIONS, ours, theirs)
    assert len(rows) == 6
    for each, row in zip(COMPLETIONS, rows, strict=True):
        (now, tokens), (before, _) = (by_hand(source, encoder, each) for source in sources)
        assert row["log_ratio"] == pytest.approx(now - before, abs=1e-4) and abs(now - before) > 0.1
        assert (row["prompt_id"], row["side"], row["tokens"]) == (each.prompt_id, each.side, tokens)
        assert row["reward"] == each.reward
        # Of the policy's own answers alone, and under the policy.
        assert row.get("log_prob") == (pytest.approx(now, abs=1e-4) if each.side == "sample" else None)
    # Finished shards are kept: weights that are gone are not asked again.
    names = {path.name for path in folder.iterdir() if not path.name.endswith(".sums")}
    assert names == {"under-the policy", "under-its initial policy"}
    assert held_out_sums(sources[1], COMPLETIONS, encoder, LAUNCH, folder, "the policy") == ours


@pytest.mark.parametrize(("way", "apart"), [("always", False), ("as_needed", True)])
def test_a_sample_has_no_say_in_what_is_cut_of_the_held_out_pair(
    way: str, apart: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Where the longest completion of a row decides, a policy's own one is a row by itself; else it shares the prompt's pass."""
    groups = _groups(COMPLETIONS, ChatEncoder(tokenizer, max_length=90, truncation=way))
    found = [[text[0]["content"] for text in group.texts.values()] for group in groups]
    pair, sample = [TEXTS["chosen"], TEXTS["rejected"]], [TEXTS["sample"]]
    assert found == ([pair, pair, sample, sample] if apart else [pair + sample, pair + sample])
