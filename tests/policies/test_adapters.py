"""Low-rank adapters around a policy: what they change, what they leave, and what merging gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.adapters import adapted, adapter_off, merged
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.recipes.settings import LoraSettings
from handbook_ext.training.scoring import score_batch
from handbook_ext.training.trainer import PreferenceTrainer

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy

KINDS = ["llama", "gpt_neox"]
LORA = LoraSettings(r=4, lora_alpha=8.0)
SELM, DPO = Objective(beta=0.3, alpha=0.2), Objective(beta=0.3)


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]) -> EncodedPairs:
    return encoded_pairs(tokenizer, make_pairs(12))


def encoded_pairs(tokenizer: PreTrainedTokenizerFast, pairs: list[PreferencePair]) -> EncodedPairs:
    return encode_pairs(pairs, ChatEncoder(tokenizer, max_length=56, max_prompt_length=40), explore=True)


def scores(policy: PreTrainedModel | PeftModel, encoded: EncodedPairs) -> dict[str, float]:
    """Summed log-probs by completion id."""
    values = [value for pair in encoded.pairs for value in score_batch(policy.eval(), [pair], pad_id=0, head_chunk=16)[0]]
    return dict(zip((name for names in encoded.ids for name in names), values, strict=True))


def near(values: dict[str, float]) -> Any:
    return pytest.approx(values, rel=1e-5, abs=1e-5)


def apart(ours: dict[str, float], theirs: dict[str, float]) -> float:
    return max(abs(ours[name] - theirs[name]) for name in theirs)


def wrapped(policy: PreTrainedModel, lora: LoraSettings = LORA, *, stirred: bool = True) -> PeftModel:
    """The policy with adapters; stirred ones are not zero any more."""
    model = adapted(prefix_shared(policy), lora, seed=3)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if stirred and "lora_B" in name:
                weight.normal_(0, 0.05)
    return model


def trainer_of(policy: Any, encoded: EncodedPairs, args: Any, objective: Objective = SELM) -> PreferenceTrainer:
    plan = BatchPlan(encoded.lengths, 8, 2, seed=3)
    return PreferenceTrainer(policy, args, encoded.pairs, plan, objective, pad_id=0, head_chunk=16)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_are_alone_trainable(kind: str, build: BuildPolicy, encoded: EncodedPairs) -> None:
    policy = wrapped(build(kind), stirred=False)
    assert scores(policy, encoded) == scores(prefix_shared(build(kind)), encoded)
    trainable = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    layers = [name for name, part in build(kind).named_modules() if isinstance(part, torch.nn.Linear)]
    assert len(trainable) == 2 * (len(layers) - 1)  # A and B of every linear layer but the head
    assert all(".lora_" in name for name in trainable)
    again, other = wrapped(build(kind), stirred=False), adapted(build(kind), LORA, seed=5)
    name = next(name for name in trainable if "lora_A" in name)
    assert torch.equal(policy.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(policy.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_switched_off_and_on(kind: str, build: BuildPolicy, encoded: EncodedPairs) -> None:
    policy, plain = wrapped(build(kind)), scores(prefix_shared(build(kind)), encoded)
    on, trainable = scores(policy, encoded), [weight.requires_grad for weight in policy.parameters()]
    with adapter_off(policy):
        assert scores(policy, encoded) == plain
    assert scores(policy, encoded) == on
    assert apart(on, plain) > 0.1
    assert [weight.requires_grad for weight in policy.parameters()] == trainable
    with pytest.raises(TypeError, match="has no adapter to turn off"):
        adapter_off(build(kind))


@pytest.mark.parametrize("objective", [SELM, DPO], ids=["selm", "dpo"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_that_of_the_merged_policy(
    kind: str, objective: Objective, build: BuildPolicy, encoded: EncodedPairs, arguments: Arguments
) -> None:
    ready = encoded.with_reference(scores(prefix_shared(build(kind, seed=9)), encoded), "other")
    policy = wrapped(build(kind))
    first = []
    for model in (merged(copy.deepcopy(policy)), policy, prefix_shared(build(kind))):
        trainer = trainer_of(model, ready, arguments(max_steps=1), objective)
        trainer.train()
        first.append(trainer.state.log_history[0])
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], abs=1e-5)
    assert first[1]["rewards/margins"] == pytest.approx(first[0]["rewards/margins"], abs=1e-4)
    assert abs(first[2]["rewards/margins"] - first[0]["rewards/margins"]) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_adapters_only(kind: str, build: BuildPolicy, encoded: EncodedPairs, arguments: Arguments) -> None:
    start = scores(prefix_shared(build(kind)), encoded)
    policy = wrapped(build(kind), stirred=False)
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    trainer = trainer_of(policy, encoded.with_reference(start, "own"), arguments())
    trainer.tolerance = 0.0
    trainer.train()
    changed = {name for name, weight in policy.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    on = scores(policy, encoded)
    plain = merged(policy)
    assert scores(plain, encoded) == near(on)
    assert apart(on, start) > 0.1
    assert all(weight.requires_grad for weight in plain.parameters())
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in build(kind).named_parameters()]


def test_gradient_checkpointing_gives_the_same_weights(build: BuildPolicy, encoded: EncodedPairs, arguments: Arguments) -> None:
    ready, ends = encoded.with_reference(scores(prefix_shared(build()), encoded), "own"), []
    for checkpointing in (False, True):
        args = arguments(max_steps=2, gradient_checkpointing=checkpointing)
        policy = adapted(prefix_shared(build()), LORA, 3, args)
        trainer_of(policy, ready, args).train()
        ends.append({name: weight for name, weight in policy.named_parameters() if ".lora_" in name})
    assert max(float(weight.detach().abs().max()) for name, weight in ends[0].items() if "lora_B" in name) > 1e-3
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["q_proj", "query"], "'query' is no linear layer inside this llama; it has: down_proj, gate_proj, k_proj, .*, v_proj; "),
        (["lm_head"], "'lm_head' is no linear layer"), (["embed_tokens"], "'embed_tokens' is no"), ([], "an empty list"),
    ],
)  # fmt: skip
def test_targets_that_match_nothing_are_refused(targets: list[str], words: str, build: BuildPolicy) -> None:
    with pytest.raises(UserError, match=r"model.lora.target_modules: " + words) as refused:
        adapted(build(), LoraSettings(target_modules=targets), seed=0)
    assert "\n" not in str(refused.value)


def test_named_targets_alone_get_adapters(build: BuildPolicy) -> None:
    policy = adapted(build(), LoraSettings(target_modules=["q_proj", "mlp.up_proj"]), seed=0)
    trainable = {name.split(".lora_")[0].split(".")[-1] for name, weight in policy.named_parameters() if weight.requires_grad}
    assert trainable == {"q_proj", "up_proj"}
