"""Policies kept while training goes on: what training was at their steps, killed or not, and nothing else changed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.selection.log_prob_store import reference_sums
from handbook_ext.training.checkpoints import last_complete_checkpoint
from handbook_ext.training.kept import KeepPolicies, steps_to_keep
from handbook_ext.training.trainer import PreferenceTrainer
from tests.training.test_trainer import Killed, Weights, _saving, assert_bits, fill_store, trainer_of, weights_of

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

STEPS = {"at-25": 2, "at-66.67": 4}  # Of six.


class Copy(TrainerCallback):
    """Copies the weights after each step."""

    def __init__(self) -> None:
        self.weights: dict[int, Weights] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights[state.global_step] = {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.fixture(scope="module")
def referred(
    tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]], build: BuildPolicy,
    tmp_path_factory: pytest.TempPathFactory,
) -> EncodedPairs:  # fmt: skip
    """Pairs with reference log-probs."""
    encoded = encode_pairs(make_pairs(19), ChatEncoder(tokenizer, max_length=56, max_prompt_length=40), explore=True)
    folder = fill_store(tmp_path_factory.mktemp("store"), build(seed=9), encoded)
    return encoded.with_reference(reference_sums(folder, "ours"), "ours")


@pytest.fixture(scope="module")
def plain(build: BuildPolicy, referred: EncodedPairs, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Weights]:
    """The weights after each step of a training that keeps nothing."""
    trainer, seen = trainer_of(build(), referred, _saving(tmp_path_factory.mktemp("plain"))), Copy()
    trainer.add_callback(seen)
    trainer.train()
    return seen.weights


def keeping(trainer: PreferenceTrainer, tokenizer: PreTrainedTokenizerFast) -> KeepPolicies:
    kept = KeepPolicies(trainer, tokenizer, STEPS)
    trainer.add_callback(kept)
    return kept


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "checkpoint" not in path.name}


def loaded(folder: Path) -> Weights:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_a_kept_policy_is_the_one_of_its_step_and_training_ends_as_without(
    build: BuildPolicy, referred: EncodedPairs, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, plain: dict[int, Weights]
) -> None:
    trainer = trainer_of(build(), referred, _saving(tmp_path / "checkpoints"))
    kept = keeping(trainer, tokenizer)
    trainer.train()
    assert_bits(weights_of(trainer), plain[6])
    assert names(tmp_path / "checkpoints") == {"at-25", "at-66.67"}
    for _ in range(2):  # A repeat, where the first was killed before the policy was published.
        kept.publish(tmp_path / "policy")
    for name, step in STEPS.items():
        folder = tmp_path / "policy" / name
        assert_bits(loaded(folder), plain[step])
        assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
        assert not (folder / "training_args.bin").exists()
        assert (tmp_path / "checkpoints" / name / "config.json").is_file()


def killed_in(place: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has training die at a step: while its policy is written, before its checkpoint is whole, or in the step after it."""
    kind, method = {
        "keeping": (PreTrainedTokenizerFast, "save_pretrained"),
        "checkpoint": (PreferenceTrainer, "_save_optimizer_and_scheduler"),
        "next step": (PreferenceTrainer, "training_step"),
    }[place]
    inner, calls = getattr(kind, method), [0]

    def die(self: Any, *rest: Any, **more: Any) -> Any:
        calls[0] += 1
        # A tokenizer is saved with each policy: after steps 2 and 4.
        if step == (2 * calls[0] if place == "keeping" else self.state.global_step):
            raise Killed
        return inner(self, *rest, **more)

    monkeypatch.setattr(kind, method, die)


@pytest.mark.parametrize("step", [2, 4])
@pytest.mark.parametrize(("place", "again"), [("keeping", True), ("checkpoint", True), ("next step", False)])
def test_a_kill_loses_no_kept_policy_and_doubles_none(
    place: str, again: bool, step: int, build: BuildPolicy, referred: EncodedPairs, tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[int, Weights],
) -> None:  # fmt: skip
    name = {2: "at-25", 4: "at-66.67"}[step]
    trainer = trainer_of(build(), referred, _saving(tmp_path))
    keeping(trainer, tokenizer)
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        killed_in(place, step, patch)
        trainer.train()
    assert trainer.state.global_step == step
    assert Path(last_complete_checkpoint(tmp_path) or "").name == f"checkpoint-{step - again}"
    whole = tmp_path / name / "model.safetensors"
    assert whole.exists() == (place != "keeping")
    before = whole.stat().st_ino if whole.exists() else 0
    trainer = trainer_of(build(seed=5), referred, _saving(tmp_path))
    keeping(trainer, tokenizer)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
    assert (whole.stat().st_ino != before) == again
    assert names(tmp_path) == {"at-25", "at-66.67"}
    for each, at in STEPS.items():
        assert_bits(loaded(tmp_path / each), plain[at])


def test_a_training_that_has_ended_publishes_what_it_kept(
    build: BuildPolicy, referred: EncodedPairs, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of(build(), referred, _saving(tmp_path / "checkpoints"))
    keeping(trainer, tokenizer)
    trainer.train()
    trainer = trainer_of(build(), referred, _saving(tmp_path / "checkpoints"))
    kept = keeping(trainer, tokenizer)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path / "checkpoints"))
    kept.publish(tmp_path / "policy")
    assert names(tmp_path / "policy") == {"at-25", "at-66.67"}


@pytest.mark.parametrize(
    ("shares", "steps", "found"),
    [
        ([0.25, 0.5], 8, [2, 4]),
        ([0.25, 0.6667], 6, [2, 4]),
        ([0.01], 60, [1]),
        ([0.99], 60, [59]),
        ([], 1, []),
        ([0.3333], 3, [1]),
    ],
)
def test_policies_are_kept_at_the_nearest_step(shares: list[float], steps: int, found: list[int]) -> None:
    names = [f"{100 * share:g}" for share in shares]
    expected = {f"at-{name}": step for name, step in zip(names, found, strict=True)}
    assert steps_to_keep(dict(zip(names, shares, strict=True)), steps) == expected


@pytest.mark.parametrize("epochs", [0.5, 1.4, 2])
def test_the_steps_of_a_training_are_those_that_the_plan_says(
    epochs: float, build: BuildPolicy, referred: EncodedPairs, tmp_path: Path
) -> None:
    """As scripts/train_policy.py counts them before it loads the policy."""
    arguments = _saving(tmp_path)
    arguments.num_train_epochs = epochs
    trainer = trainer_of(build(), referred, arguments)
    trainer.train()
    assert trainer.state.max_steps == math.ceil(epochs * trainer.plan.steps)


@pytest.mark.parametrize(
    ("shares", "steps"), [([0.05], "0"), ([0.25, 0.3], "2, 2"), ([0.95], "6"), ([0.05, 0.5, 0.95], "0, 3, 6")]
)
def test_shares_without_a_step_of_their_own_are_refused(shares: list[float], steps: str) -> None:
    with pytest.raises(UserError, match=rf"train.keep_at: its shares of 6 optimizer steps are {steps}, but each policy needs"):
        steps_to_keep({f"{100 * share:g}": share for share in shares}, 6)
