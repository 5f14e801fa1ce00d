"""SFT on rows without padding has the loss and the gradients of TRL's trainer on the same batches."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTTrainer

from handbook_ext.policies.forward import prefix_shared
from handbook_ext.policies.packing import EncodedPair, pack
from handbook_ext.policies.unread import leave_out_unread
from handbook_ext.recipes.settings import LoraSettings, SFTSettings
from handbook_ext.training import padding_free, supervised
from handbook_ext.training.padding_free import PaddingFreeTrainer
from handbook_ext.training.sft_examples import IGNORED
from handbook_ext.training.supervised import optimizer_arguments, sft_trainer
from tests.policies.test_prefix_shared import ARCHITECTURES

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

LENGTHS = (40, 3, 17, 25, 8, 33, 12, 21)


def examples(*, every_token: bool = False, without: tuple[int, ...] = ()) -> Dataset:
    """Eight examples of very different lengths; those of `without` have no label at all."""
    draw = random.Random(4)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [draw.randrange(3, 300) for _ in range(length)]
        unlabelled = length if number in without else 0 if every_token else length * 2 // 3
        rows.append({"input_ids": ids, "labels": [IGNORED] * unlabelled + ids[unlabelled:]})
    return Dataset.from_list(rows)


@pytest.fixture
def trainer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function policy -> trainer over examples, ours or, with trl=True, TRL's own."""

    def make(
        policy: PreTrainedModel, rows: Dataset, *, trl: bool = False, lora: Any = None, saved: bool = False, **given: Any
    ) -> Any:  # fmt: skip
        values = {"learning_rate": 1e-2, "global_batch_size": 8, "per_device_train_batch_size": 4, "max_length": 64}
        settings = SFTSettings(**{**values, "logging_steps": 1, **given})
        arguments = optimizer_arguments(settings, tmp_path / f"trl-{trl}", 1, 3) | ({} if saved else {"save_strategy": "no"})
        with monkeypatch.context() as patch:
            if trl:
                patch.setattr(supervised, "can_string_together", lambda *_: False)
            return sft_trainer(policy, tokenizer, rows, settings, arguments=arguments, callbacks=[], lora=lora)

    return make


def loss_and_gradients(trainer: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Of the first optimizer step, summed over its micro-batches as Trainer sums them."""
    batches, items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(batches)
    loss = sum(float(trainer.training_step(trainer.model, batch, items)) for batch in batches)
    return loss, {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}


def assert_same(ours: tuple[float, dict[str, torch.Tensor]], theirs: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert float((ours[1][name] - gradient).abs().max()) <= 5e-6 * float(gradient.abs().max()) + 1e-9, name


@pytest.mark.parametrize("every_token", [False, True], ids=["completion", "all"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_trl(kind: str, every_token: bool, build: BuildPolicy, trainer: Any) -> None:
    policy = build(kind)
    rows = examples(every_token=every_token)
    theirs = loss_and_gradients(trainer(copy.deepcopy(policy), rows, trl=True))
    ours = trainer(policy, rows)
    assert isinstance(ours, PaddingFreeTrainer)
    assert_same(loss_and_gradients(ours), theirs)


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_rows_are_those_of_trl(strategy: str, build: BuildPolicy, trainer: Any) -> None:
    values = {"packing": True, "packing_strategy": strategy, "per_device_train_batch_size": 1, "global_batch_size": 2}
    policy, rows = build(), examples()
    theirs = loss_and_gradients(trainer(copy.deepcopy(policy), rows, trl=True, **values))
    assert_same(loss_and_gradients(trainer(policy, rows, **values)), theirs)


def test_adapters_and_recomputed_layers_train_as_with_trl(build: BuildPolicy, trainer: Any) -> None:
    policy, rows = build(), examples()
    lora = LoraSettings(r=2, lora_alpha=4, lora_dropout=0.0)
    each = [trainer(copy.deepcopy(policy), rows, trl=trl, lora=lora, gradient_checkpointing=True) for trl in (False, True)]
    for one in each:  # B = 0 at first, and with it the gradient of A.
        for name, weight in one.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.ones_(weight)
    assert_same(*(loss_and_gradients(one) for one in each))


def test_micro_batches_weigh_their_labels_and_one_without_labels_nothing(build: BuildPolicy, trainer: Any) -> None:
    policy, rows = build(), examples(without=(0, 1, 2))
    one = loss_and_gradients(trainer(copy.deepcopy(policy), rows, per_device_train_batch_size=8))
    trainers = [trainer(copy.deepcopy(policy), rows, per_device_train_batch_size=1) for _ in range(2)]
    batches, items = trainers[0].get_batch_samples(iter(trainers[0].get_train_dataloader()), 8, "cpu")
    assert 0 in [len(batch["labels"]) for batch in batches]
    loss = sum(float(trainers[0].training_step(trainers[0].model, batch, items)) for batch in batches)
    gradients = {name: weight.grad for name, weight in trainers[0].model.named_parameters() if weight.grad is not None}
    assert_same((loss, gradients), one)


def test_a_head_in_chunks_has_the_same_loss(build: BuildPolicy, trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, rows = build(), examples()
    whole = loss_and_gradients(trainer(copy.deepcopy(policy), rows))
    monkeypatch.setattr(padding_free, "HEAD_CHUNK", 7)
    assert_same(loss_and_gradients(trainer(policy, rows)), whole)


def test_trained_policies_agree_and_a_log_line_holds_what_was_computed(build: BuildPolicy, trainer: Any) -> None:
    policy, rows = build(), examples()
    ours, theirs = (trainer(copy.deepcopy(policy), rows, trl=trl, num_train_epochs=4) for trl in (False, True))
    for each in (ours, theirs):
        each.train()
    lines = [[line for line in each.state.log_history if "loss" in line] for each in (ours, theirs)]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in lines[0]] == pytest.approx([line[name] for line in lines[1]], rel=1e-4)
    assert all(line["tokens_per_second"] > 0 for line in lines[0])
    assert not any({"entropy", "mean_token_accuracy", "num_tokens"} & set(line) for line in lines[0])
    # What the last MLP leaves out in training, a call without rows has.
    ids = torch.tensor([rows[0]["input_ids"]])
    ours.model.eval(), theirs.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours.model(input_ids=ids).logits, theirs.model(input_ids=ids).logits, rtol=1e-3, atol=1e-3)


def test_a_pair_whose_completions_share_a_position_keeps_its_gradient(build: BuildPolicy) -> None:
    rows = pack([EncodedPair([5, 6, 7], [8, 9], [10])], pad_id=0)
    found = []
    for made in (prefix_shared, lambda policy: leave_out_unread(prefix_shared(policy)) or policy):
        policy = made(build())
        policy(rows=rows).sum().backward()
        found.append((0.0, {name: weight.grad for name, weight in policy.named_parameters()}))
    assert_same(*found)


def test_training_resumes_bit_for_bit(build: BuildPolicy, trainer: Any) -> None:
    policy, rows = build(), examples()
    values = {"num_train_epochs": 3, "global_batch_size": 4, "optim": "adamw_torch_fused", "save_steps": 3}
    whole, resumed = (trainer(copy.deepcopy(policy), rows, saved=True, **values) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    theirs = whole.model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in resumed.model.state_dict().items())
    losses = [[line["loss"] for line in each.state.log_history if "loss" in line] for each in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.parametrize(
    ("kind", "attention", "values"),
    [
        ("mistral", "sdpa", {"sliding_window": 63}), ("llama", "eager", {}), ("cohere", "sdpa", {"logit_scale": 0.5}),
        ("mixtral", "sdpa", {"num_local_experts": 2}), ("llama", "sdpa", {"lm_head_multiplier": 2.0}),
        ("llama", "sdpa", {"layer_types": ["linear_attention", "full_attention"]}), ("llama", "sdpa", {"alibi": True}),
    ],
)  # fmt: skip
def test_a_model_that_cannot_string_rows_together_trains_as_trl_does(
    kind: str, attention: str, values: dict[str, Any], build: BuildPolicy, trainer: Any
) -> None:
    policy = build(kind, 0, attention)
    for name, value in values.items():
        setattr(policy.config, name, value)
    assert type(trainer(policy, examples())) is SFTTrainer
