"""DPO and SELM by hand, against TRL's DPOTrainer, and against SELM's official step written plainly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.core.jsonl import read_rows, write_rows
from handbook_ext.core.records import PreferencePair
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.objectives.losses import dpo_loss, exploration_term, implicit_reward, preference_accuracy
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.packing import EncodedPair
from handbook_ext.training.scoring import score_batch
from handbook_ext.training.trainer import PreferenceTrainer

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy

MakePairs = Callable[[int], list[PreferencePair]]
Step = tuple[float, dict[str, Tensor]]

# Zephyr's template leaves a newline behind the end token, which TRL scores and this package does not.
NO_NEWLINE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Two pairs: log-probs of chosen, rejected and explore under the policy and under the reference, nats.
OURS = torch.tensor([[-4.0, -9.0], [-6.0, -7.0], [-5.0, -3.0]])
REFERENCE = torch.tensor([[-5.0, -8.5], [-5.5, -7.5], [-8.0, -3.5]])

TOKENS = (torch.tensor([2, 5]), torch.tensor([4, 3]))


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def by_hand(objective: Objective, explored: tuple[float, float] = (1.0, 1.0)) -> tuple[list[float], Tensor]:
    """Losses of the two pairs, and the gradient of their sum for the policy's log-probs."""
    ours = OURS.clone().requires_grad_()
    losses = objective.losses(tuple(ours.unbind(0)), REFERENCE, TOKENS, torch.tensor(explored))
    losses.sum().backward()
    assert ours.grad is not None
    return losses.tolist(), ours.grad


def test_dpo_by_hand() -> None:
    losses, gradient = by_hand(Objective(beta=0.5))
    # Log-ratios: chosen 1.0 and -0.5, rejected -0.5 and 0.5; beta times their difference: 0.75 and -0.5.
    assert losses == pytest.approx([softplus(-0.75), softplus(0.5)], rel=1e-6)
    slopes = [0.5 / (1 + math.exp(0.75)), 0.5 / (1 + math.exp(-0.5))]
    assert gradient[0].tolist() == pytest.approx([-slope for slope in slopes], rel=1e-6)
    assert gradient[1].tolist() == pytest.approx(slopes, rel=1e-6)
    assert gradient[2].tolist() == [0, 0]


@pytest.mark.parametrize(("scale", "factor"), [("alpha_beta", 0.1), ("alpha", 0.2)])
@pytest.mark.parametrize(("form", "terms"), [("log_ratio", [3.0, 0.5]), ("log_prob", [-5.0, -3.0])])
def test_selm_by_hand(scale: str, factor: float, form: str, terms: list[float]) -> None:
    objective = Objective(beta=0.5, alpha=0.2, alpha_scale=scale, explore_form=form)
    losses, gradient = by_hand(objective)
    expected = [softplus(-0.75) + factor * terms[0], softplus(0.5) + factor * terms[1]]
    assert losses == pytest.approx(expected, rel=1e-6)
    assert gradient[2].tolist() == pytest.approx([factor, factor], rel=1e-6)
    assert torch.equal(gradient[:2], by_hand(Objective(beta=0.5))[1][:2])


@pytest.mark.parametrize("scale", ["alpha_beta", "alpha"])
def test_both_explore_forms_have_the_same_gradient_and_other_values(scale: str) -> None:
    ratio = by_hand(Objective(beta=0.5, alpha=0.2, alpha_scale=scale, explore_form="log_ratio"))
    prob = by_hand(Objective(beta=0.5, alpha=0.2, alpha_scale=scale, explore_form="log_prob"))
    assert torch.equal(ratio[1], prob[1])
    assert all(abs(a - b) > 0.1 for a, b in zip(ratio[0], prob[0], strict=True))


def test_a_pair_without_explored_sample_has_no_exploration_term() -> None:
    losses, gradient = by_hand(Objective(beta=0.5, alpha=0.2), explored=(0.0, 1.0))
    assert losses[0] == by_hand(Objective(beta=0.5))[0][0]
    assert gradient[2].tolist() == pytest.approx([0, 0.1])


@pytest.mark.parametrize("scale", ["alpha_beta", "alpha"])
@pytest.mark.parametrize("form", ["log_ratio", "log_prob"])
def test_alpha_zero_is_dpo_to_the_bit(scale: str, form: str) -> None:
    losses, gradient = by_hand(Objective(beta=0.5, alpha=0.0, alpha_scale=scale, explore_form=form))
    ours = OURS.clone().requires_grad_()
    dpo = dpo_loss(ours[0] - REFERENCE[0], ours[1] - REFERENCE[1], beta=0.5)
    dpo.sum().backward()
    assert losses == dpo.tolist()
    assert torch.equal(gradient, ours.grad)


def test_exploration_term_implicit_reward_and_accuracy_by_hand() -> None:
    explore = torch.tensor([2.0, -1.0])
    assert exploration_term(explore, beta=0.5, alpha=0.2).tolist() == pytest.approx([0.2, -0.1])
    assert exploration_term(explore, beta=0.5, alpha=0.2, scale="alpha").tolist() == pytest.approx([0.4, -0.2])
    assert implicit_reward(explore, beta=0.5).tolist() == [1.0, -0.5]
    assert preference_accuracy(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])).tolist() == [0, 0.5, 1]


def test_dpo_stays_finite_for_huge_margins() -> None:
    margins = torch.tensor([1e4, -1e4])
    assert dpo_loss(margins, torch.zeros(2), beta=0.1).tolist() == pytest.approx([0, 1e3])


def with_reference(encoded: EncodedPairs, reference: PreTrainedModel) -> list[EncodedPair]:
    """The pairs with log-probs of a reference model, pair by pair."""
    scorer = prefix_shared(copy.deepcopy(reference)).eval()
    pairs = []
    for pair in encoded.pairs:
        [values] = score_batch(scorer, [pair], pad_id=0, head_chunk=64)
        explored = values[pair.explore_index] if pair.explore is not None else 0.0
        pairs.append(replace(pair, reference=(values[0], values[1], explored)))
    return pairs


def our_step(policy: PreTrainedModel, pairs: list[EncodedPair], objective: Objective, arguments: Arguments) -> Step:
    """Loss and gradients of one optimizer step of PreferenceTrainer over all pairs, in micro-batches of 2."""
    args = arguments(gradient_accumulation_steps=len(pairs) // 2)
    plan = BatchPlan([len(pair) for pair in pairs], len(pairs), 2, seed=1)
    model = prefix_shared(copy.deepcopy(policy))
    trainer = PreferenceTrainer(model, args, pairs, plan, objective, pad_id=0, head_chunk=64)
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    loss = sum(float(trainer.training_step(model, batch)) for batch in trainer.get_train_dataloader())
    return loss, gradients_of(model)


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_step(ours: Step, theirs: Step) -> None:
    """Losses and every parameter's gradient agree to 1e-5, relative to the largest entry."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert float((ours[1][name] - gradient).abs().max() / gradient.abs().max()) < 1e-5, name


@pytest.mark.parametrize(
    ("kind", "loss_type", "label_smoothing"),
    [
        ("mistral", "sigmoid", 0.0), ("gpt_neox", "sigmoid", 0.0), ("mistral", "robust", 0.2), ("mistral", "ipo", 0.0),
        ("mistral", "hinge", 0.0),
    ],
)  # fmt: skip
def test_loss_and_gradients_equal_trls_dpo_trainer(
    kind: str, loss_type: str, label_smoothing: float, build: BuildPolicy, tokenizer: PreTrainedTokenizerFast,
    make_pairs: MakePairs, arguments: Arguments, tmp_path: Path,
) -> None:  # fmt: skip
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = NO_NEWLINE
    rows = make_pairs(6)
    encoded = encode_pairs(rows, ChatEncoder(tokenizer, max_length=200), explore=False)
    policy, reference = build(kind, seed=1), build(kind, seed=2)
    conversations = [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in rows]
    args = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=6, report_to="none", use_cpu=True, bf16=False,
        max_length=200, gradient_checkpointing=False, disable_tqdm=True, loss_type=loss_type, label_smoothing=label_smoothing,
    )  # fmt: skip
    trl_policy = copy.deepcopy(policy)
    trl = DPOTrainer(
        trl_policy, copy.deepcopy(reference), args, train_dataset=Dataset.from_list(conversations), processing_class=tokenizer
    )
    theirs = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trl.train_dataset]
    assert theirs == [(pair.prompt, pair.chosen, pair.rejected) for pair in encoded.pairs]
    [batch] = trl.get_train_dataloader()
    loss = trl.compute_loss(trl_policy, batch)
    loss.backward()
    options = {"label_smoothing": label_smoothing} if label_smoothing else {}
    objective = Objective(loss_type=loss_type, beta=0.3, options=options)
    ours = our_step(policy, with_reference(encoded, reference), objective, arguments)
    assert abs(ours[0] - math.log(2)) > 0.01
    assert_same_step(ours, (loss.item(), gradients_of(trl_policy)))


def padded_sums(model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """One forward of SELM's official code: sequences padded on the right, prompt labels -100, summed log-probs."""
    length = max(len(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids, mask, labels = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        rest = length - len(prompt) - len(answer)
        ids.append(prompt + answer + [0] * rest)
        mask.append([1] * (length - rest) + [0] * rest)
        labels.append([-100] * len(prompt) + answer + [-100] * rest)
    logits = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[:, :-1]
    target = torch.tensor(labels)[:, 1:]
    scored = target != -100
    tokens = logits.log_softmax(-1).gather(2, target.masked_fill(~scored, 0)[..., None])[..., 0]
    return (tokens * scored).sum(1)


@pytest.mark.parametrize("scale", ["alpha_beta", "alpha"])
def test_selm_equals_the_official_step_of_three_padded_forwards(
    scale: str, build: BuildPolicy, tokenizer: PreTrainedTokenizerFast, make_pairs: MakePairs, arguments: Arguments
) -> None:
    rows = [row for row in make_pairs(8) if row.explore is not None]
    encoded = encode_pairs(rows, ChatEncoder(tokenizer, max_length=200), explore=True)
    policy, reference = build("mistral", seed=1), build("mistral", seed=2)
    beta, alpha, pairs = 0.3, 0.25, encoded.pairs
    official, ratios = copy.deepcopy(policy), []
    for completions in ([p.chosen for p in pairs], [p.rejected for p in pairs], [p.explore or [] for p in pairs]):
        prompts = [pair.prompt for pair in pairs]
        with torch.no_grad():
            theirs = padded_sums(reference, prompts, completions)
        ratios.append(padded_sums(official, prompts, completions) - theirs)
    factor = alpha * beta if scale == "alpha_beta" else alpha
    loss = (-torch.nn.functional.logsigmoid(beta * (ratios[0] - ratios[1])) + factor * ratios[2]).mean()
    loss.backward()
    objective = Objective(beta=beta, alpha=alpha, alpha_scale=scale)
    ours = our_step(policy, with_reference(encoded, reference), objective, arguments)
    assert_same_step(ours, (loss.item(), gradients_of(official)))


def test_selm_with_alpha_zero_trains_as_dpo_to_the_bit(
    build: BuildPolicy, tokenizer: PreTrainedTokenizerFast, make_pairs: MakePairs, arguments: Arguments, tmp_path: Path
) -> None:
    def trained(rows: list[PreferencePair], objective: Objective) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        """A run from pairs.jsonl on, as scripts/train_policy.py does it."""
        write_rows(tmp_path / "pairs.jsonl", rows)
        read = read_rows(tmp_path / "pairs.jsonl", PreferencePair)
        encoded = encode_pairs(read, ChatEncoder(tokenizer, max_length=200), explore=objective.alpha > 0)
        pairs = with_reference(encoded, build(seed=1))
        plan = BatchPlan(encoded.lengths, 8, 2, seed=1)
        trainer = PreferenceTrainer(prefix_shared(build(seed=1)), arguments(), pairs, plan, objective, pad_id=0)
        trainer.train()
        timeless = [
            {key: value for key, value in line.items() if "second" not in key and "runtime" not in key}
            for line in trainer.state.log_history
        ]
        return timeless, {name: weight.detach() for name, weight in trainer.model.named_parameters()}

    rows = make_pairs(12)
    unexplored = [row.model_copy(update={"explore": None}) for row in rows]
    selm = trained(rows, Objective(beta=0.3, alpha=0.0, alpha_scale="alpha", explore_form="log_prob"))
    dpo = trained(unexplored, Objective(beta=0.3))
    assert selm[0] == dpo[0]
    assert all(torch.equal(selm[1][name], weight) for name, weight in dpo[1].items())
    exploring = trained(rows, Objective(beta=0.3, alpha=1e-3))
    assert not all(torch.equal(exploring[1][name], weight) for name, weight in dpo[1].items())
