"""From the score store to trained weights: step 0, micro-batches, processes, interruption."""

from __future__ import annotations

import contextlib
import copy
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import PreferencePair
from handbook_ext.objectives.batching import BatchPlan, Slot
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.policies.forward import prefix_shared
from handbook_ext.selection.log_prob_store import reference_sums
from handbook_ext.training.checkpoints import COMPLETE, last_complete_checkpoint
from handbook_ext.training.scoring import score_batch, score_shard, store_batches
from handbook_ext.training.supervised import batch_arguments
from handbook_ext.training.trainer import PreferenceTrainer, save_policy

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy

PAIRS, GLOBAL_BATCH, CHUNK = 19, 8, 16  # Three steps an epoch, the last over 3 pairs and 5 fillers.
SELM = Objective(beta=0.3, alpha=0.2)
SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}  # No error hides.

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def encoded(tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]) -> EncodedPairs:
    """Pairs under limits that cut some."""
    return encode_pairs(make_pairs(PAIRS), ChatEncoder(tokenizer, max_length=56, max_prompt_length=40), explore=True)


def plan_of(encoded: EncodedPairs, micro: int = 2, tokens: int | None = None, processes: int = 1) -> BatchPlan:
    return BatchPlan(encoded.lengths, GLOBAL_BATCH, micro, 3, tokens, processes, epochs=2)


def fill_store(
    folder: Path, policy: PreTrainedModel, encoded: EncodedPairs, *, name: str = "ours", tokens: int | None = None
) -> Path:  # fmt: skip
    """The score store of a policy in a folder, as scripts/score_completions.py writes it."""
    folder.mkdir(exist_ok=True)
    scorer = prefix_shared(copy.deepcopy(policy)).eval()
    for number, shard in enumerate(store_batches(plan_of(encoded, tokens=tokens))):
        rows = score_shard(scorer, encoded, shard, policy_name=name, pad_id=0, head_chunk=CHUNK)
        write_rows(folder / f"shard-{number:06d}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def referred(encoded: EncodedPairs, build: BuildPolicy, tmp_path_factory: pytest.TempPathFactory) -> EncodedPairs:
    """The pairs with reference log-probs of another policy than the one that trains: gradients are general."""
    folder = fill_store(tmp_path_factory.mktemp("store"), build(seed=9), encoded)
    return encoded.with_reference(reference_sums(folder, "ours"), "ours")


def trainer_of(
    policy: PreTrainedModel, encoded: EncodedPairs, args: Any, *, micro: int = 2, tokens: int | None = None,
    objective: Objective = SELM, **options: Any,
) -> PreferenceTrainer:  # fmt: skip
    plan = plan_of(encoded, micro, tokens, args.world_size)
    if tokens is not None:
        args.gradient_accumulation_steps = plan.per_step // args.world_size
    return PreferenceTrainer(prefix_shared(policy), args, encoded.pairs, plan, objective, pad_id=0, head_chunk=CHUNK, **options)


def weights_of(trainer: PreferenceTrainer) -> Weights:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def log_lines(trainer: PreferenceTrainer) -> list[dict[str, float]]:
    """The log without what the clock gives."""
    return [
        {key: value for key, value in line.items() if "second" not in key and "runtime" not in key}
        for line in trainer.state.log_history
        if "loss" in line
    ]


def assert_close(ours: Weights, theirs: Weights) -> None:
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def assert_bits(ours: Weights, theirs: Weights) -> None:
    assert [name for name, weight in theirs.items() if not torch.equal(ours[name], weight)] == []


# --- step 0 and the store ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mistral", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("tokens", [None, 130])
def test_implicit_rewards_are_exactly_zero_at_step_0(
    tokens: int | None, segments: bool, kind: str, build: BuildPolicy, encoded: EncodedPairs, arguments: Arguments,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if segments:  # Else these rows are too short for them.
        monkeypatch.setattr("handbook_ext.policies.segments.MIN_LENGTH", 1)
    policy = build(kind)
    store = reference_sums(fill_store(tmp_path / "logprobs", policy, encoded, tokens=tokens), "ours")
    ready = encoded.with_reference(store, "ours")
    trainer = trainer_of(policy, ready, arguments(max_steps=1), tokens=tokens, tolerance=0.0)
    trainer.train()
    first = log_lines(trainer)[0]
    assert {first[f"rewards/{part}"] for part in ("chosen", "rejected", "explore", "margins")} == {0.0}
    assert first["rewards/accuracies"] == 0.5
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert first["logps/chosen"] < -1


def test_every_pair_of_the_first_epoch_is_zero_to_the_bit(
    build: BuildPolicy, encoded: EncodedPairs, arguments: Arguments, tmp_path: Path
) -> None:
    policy = build()
    ready = encoded.with_reference(reference_sums(fill_store(tmp_path / "logprobs", policy, encoded), "ours"), "ours")
    trainer = trainer_of(policy, ready, arguments(num_train_epochs=1, learning_rate=1e-30, weight_decay=0.0))
    trainer.train()
    assert len(log_lines(trainer)) == 3
    assert {line["rewards/margins"] for line in log_lines(trainer)} == {0.0}


def test_the_store_holds_each_completion_once_with_its_tokens(build: BuildPolicy, encoded: EncodedPairs, tmp_path: Path) -> None:
    folder = fill_store(tmp_path / "logprobs", build(), encoded)
    rows = [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]
    tokens = {
        name: len(ids)
        for names, pair in zip(encoded.ids, encoded.pairs, strict=True)
        for name, ids in zip(names, pair.completions, strict=True)
    }
    assert {row["completion"]: row["tokens"] for row in rows} == tokens
    assert len(rows) == len(tokens)
    assert all(row["mean"] * row["tokens"] == pytest.approx(row["sum"]) and row["policy"] == "ours" for row in rows)


def test_training_refuses_a_store_of_other_weights(build: BuildPolicy, referred: EncodedPairs, arguments: Arguments) -> None:
    trainer = trainer_of(build(), referred, arguments(), tolerance=1e-3)
    with pytest.raises(UserError, match=r"differs from its stored log-probs by .* nats per token"):
        trainer.train()


def test_training_refuses_a_store_of_nan(build: BuildPolicy, encoded: EncodedPairs, arguments: Arguments) -> None:
    store = {name: float("nan") for names in encoded.ids for name in names}
    trainer = trainer_of(build(), encoded.with_reference(store, "ours"), arguments(), tolerance=1e-3)
    with pytest.raises(UserError, match="or those stored for it, are NaN"):
        trainer.train()


@pytest.mark.parametrize(("batch", "slot"), [(0, 0), (0, 1), (3, 1)])
@pytest.mark.parametrize(("error", "refused"), [(0.02, True), (-0.02, True), (0.005, False)])
def test_one_wrong_pair_of_the_first_step_is_enough_to_refuse_the_store(
    batch: int, slot: int, error: float, refused: bool, build: BuildPolicy, encoded: EncodedPairs, arguments: Arguments,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The tolerance, 0.01 nats per token, holds for the worst pair of the step: the other ones agree to the bit."""
    policy = build()
    ready = encoded.with_reference(reference_sums(fill_store(tmp_path / "logprobs", policy, encoded), "ours"), "ours")
    wrong = plan_of(encoded).epoch(0)[batch][slot].index
    pair = ready.pairs[wrong]
    chosen, rejected, explored = pair.reference
    ready.rows[wrong] = replace(ready.rows[wrong], reference=(chosen, rejected + error * len(pair.rejected), explored))
    trainer = trainer_of(policy, ready, arguments(max_steps=1), tolerance=0.01)
    message = r"in the worst answer by 0\.02, in 1 of 8 pairs by more than rounding \(score.tolerance is 0\.01\)"
    with pytest.raises(UserError, match=message) if refused else contextlib.nullcontext():
        trainer.train()


def test_a_store_of_another_policy_is_refused(build: BuildPolicy, encoded: EncodedPairs, tmp_path: Path) -> None:
    folder = fill_store(tmp_path / "logprobs", build(), encoded, name="theirs")
    with pytest.raises(UserError, match=r"logprobs: holds nothing under policy ours, from which training starts"):
        reference_sums(folder, "ours")


def test_a_completion_that_is_scored_twice_is_refused(build: BuildPolicy, encoded: EncodedPairs, tmp_path: Path) -> None:
    folder = fill_store(tmp_path / "logprobs", build(), encoded)
    first = (folder / "shard-000000.jsonl").read_text().splitlines()[0]
    (folder / "shard-000001.jsonl").write_text(first + "\n")
    with pytest.raises(UserError, match="is scored twice"):
        reference_sums(folder, "ours")


def test_completions_that_the_store_lacks_are_named(build: BuildPolicy, encoded: EncodedPairs, tmp_path: Path) -> None:
    store = reference_sums(fill_store(tmp_path / "logprobs", build(), encoded), "ours")
    missing = encoded.ids[4][1]
    del store[missing]
    with pytest.raises(UserError, match=f"lacks 1 completions under policy ours, the first: {missing}"):
        encoded.with_reference(store, "ours")


# --- micro-batches and processes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def micro_batches_of_2(
    build: BuildPolicy, referred: EncodedPairs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Weights, list[dict[str, float]]]:
    """Weights and log of a run of two epochs with micro-batches of 2."""
    return _sgd_run(build, referred, str(tmp_path_factory.mktemp("run")), micro=2)


def _sgd_run(
    build: BuildPolicy, encoded: EncodedPairs, folder: str, *, micro: int, processes: int = 1, tokens: int | None = None
) -> tuple[Weights, list[dict[str, float]]]:
    from transformers import TrainingArguments

    args = TrainingArguments(
        folder, **SGD, **batch_arguments(GLOBAL_BATCH, micro, processes), num_train_epochs=2, logging_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = trainer_of(build("mistral", tie_word_embeddings=True), encoded, args, micro=micro, tokens=tokens)
    trainer.train()
    return weights_of(trainer), log_lines(trainer)


@pytest.mark.parametrize("micro", [1, 4, 8])
def test_micro_batches_do_not_change_training(
    micro: int, build: BuildPolicy, referred: EncodedPairs, tmp_path: Path,
    micro_batches_of_2: tuple[Weights, list[dict[str, float]]],
) -> None:  # fmt: skip
    weights, lines = _sgd_run(build, referred, str(tmp_path), micro=micro)
    assert_close(weights, micro_batches_of_2[0])
    assert_same_lines(lines, micro_batches_of_2[1])
    start = build("mistral", tie_word_embeddings=True).state_dict()
    assert max(float((weights[name] - start[name]).abs().max()) for name in weights) > 0.02


@pytest.mark.parametrize("tokens", [1, 130, 10**6])
def test_micro_batches_by_tokens_do_not_change_training(
    tokens: int, build: BuildPolicy, referred: EncodedPairs, tmp_path: Path,
    micro_batches_of_2: tuple[Weights, list[dict[str, float]]],
) -> None:  # fmt: skip
    """A pair each, some pairs each, all in one."""
    assert plan_of(referred, tokens=tokens).per_step in {1: [8], 130: [3, 4, 5, 6], 10**6: [1]}[tokens]
    weights, lines = _sgd_run(build, referred, str(tmp_path), micro=1, tokens=tokens)
    assert_close(weights, micro_batches_of_2[0])
    assert_same_lines(lines, micro_batches_of_2[1])


def assert_same_lines(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """Logs agree but for what depends on the layout."""
    assert len(ours) == len(theirs) == 6
    for mine, other in zip(ours, theirs, strict=True):
        for key in other.keys() - {"padding_share"}:
            assert mine[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), key


def _process(rank: int, port: int, build: BuildPolicy, encoded: EncodedPairs, folder: str, tokens: int | None) -> None:
    """One of two processes, forked: the environment that torchrun and accelerate set, and none of the parent's state."""
    import os

    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    weights, lines = _sgd_run(build, encoded, folder, micro=2, processes=2, tokens=tokens)
    assert torch.distributed.get_world_size() == 2
    torch.save({"weights": weights, "lines": lines}, Path(folder) / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tokens", [None, 130])
def test_two_processes_train_as_one(
    tokens: int | None, build: BuildPolicy, referred: EncodedPairs, tmp_path: Path,
    micro_batches_of_2: tuple[Weights, list[dict[str, float]]],
) -> None:  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, build, referred, str(tmp_path), tokens)
    torch.multiprocessing.start_processes(_process, args=arguments, nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    assert_bits(ranks[0]["weights"], ranks[1]["weights"])
    assert_close(ranks[0]["weights"], micro_batches_of_2[0])
    assert_same_lines(ranks[0]["lines"], micro_batches_of_2[1])


@pytest.mark.parametrize("processes", [3, 5, 16])
def test_a_launch_that_cannot_share_the_global_batch_is_refused(processes: int) -> None:
    with pytest.raises(UserError, match=f"global_batch_size 8 cannot be divided by {processes} processes"):
        batch_arguments(8, 2, processes)


@pytest.mark.parametrize(
    ("at_most", "processes", "micro_batch", "steps"), [(2, 1, 2, 4), (3, 1, 2, 4), (3, 2, 2, 2), (8, 2, 4, 1), (9, 8, 1, 1)]
)
def test_the_micro_batch_follows_the_launch(at_most: int, processes: int, micro_batch: int, steps: int) -> None:
    """The largest that the recipe allows and that makes up 8 pairs per step exactly, whatever the processes."""
    arguments = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": steps}
    assert batch_arguments(8, at_most, processes) == arguments


def test_the_fused_optimizer_trains_on_a_cpu_as_the_plain_one(
    build: BuildPolicy, referred: EncodedPairs, arguments: Arguments
) -> None:
    trained = []
    for optim in ("adamw_torch", "adamw_torch_fused"):
        trainer = trainer_of(build(), referred, arguments(optim=optim, num_train_epochs=1))
        trainer.train()
        assert trainer.optimizer.optimizer.defaults["fused"] is (True if optim.endswith("fused") else None)
        trained.append(weights_of(trainer))
    assert_close(*trained)


# --- interruption -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill."""


class KillAt(TrainerCallback):
    """Raises at the start of the optimizer step that follows `step` finished ones."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def uninterrupted(
    build: BuildPolicy, referred: EncodedPairs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Weights, list[dict[str, float]]]:
    """Weights and log of a run of six steps with AdamW, a schedule and checkpoints."""
    trainer = trainer_of(build(), referred, _saving(tmp_path_factory.mktemp("whole")))
    trainer.train()
    return weights_of(trainer), log_lines(trainer)


def _saving(folder: Path) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        str(folder), **batch_arguments(GLOBAL_BATCH, 2, 1), learning_rate=1e-2, num_train_epochs=2, warmup_steps=0.3,
        lr_scheduler_type="cosine", logging_steps=1, save_strategy="steps", save_steps=1, save_total_limit=2,
        report_to="none", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, seed=7, data_seed=7,
    )  # fmt: skip


def test_a_run_in_batches_by_tokens_resumes_to_the_bit(build: BuildPolicy, referred: EncodedPairs, tmp_path: Path) -> None:
    whole = trainer_of(build(), referred, _saving(tmp_path / "whole"), tokens=130)
    whole.train()
    with contextlib.suppress(Killed):
        trainer = trainer_of(build(), referred, _saving(tmp_path / "cut"), tokens=130)
        trainer.add_callback(KillAt(4))
        trainer.train()
    trainer = trainer_of(build(seed=5), referred, _saving(tmp_path / "cut"), tokens=130)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path / "cut"))
    assert_bits(weights_of(trainer), weights_of(whole))
    assert log_lines(trainer) == log_lines(whole)


def resumed(build: BuildPolicy, referred: EncodedPairs, folder: Path) -> tuple[Weights, list[dict[str, float]]]:
    """What a new process does: fresh weights, then the last whole checkpoint."""
    trainer = trainer_of(build(seed=5), referred, _saving(folder))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    return weights_of(trainer), log_lines(trainer)


@pytest.mark.parametrize("step", [2, 3, 5], ids=["first_epoch", "end_of_epoch", "second_epoch"])
def test_resumed_equals_uninterrupted_to_the_bit(
    step: int, build: BuildPolicy, referred: EncodedPairs, tmp_path: Path,
    uninterrupted: tuple[Weights, list[dict[str, float]]],
) -> None:  # fmt: skip
    with contextlib.suppress(Killed):
        trainer = trainer_of(build(), referred, _saving(tmp_path))
        trainer.add_callback(KillAt(step))
        trainer.train()
    assert Path(last_complete_checkpoint(tmp_path) or "").name == f"checkpoint-{step}"
    weights, lines = resumed(build, referred, tmp_path)
    assert_bits(weights, uninterrupted[0])
    assert lines == uninterrupted[1]


def test_a_checkpoint_that_was_cut_short_is_ignored(
    build: BuildPolicy, referred: EncodedPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[Weights, list[dict[str, float]]],
) -> None:  # fmt: skip
    def killed(self: PreferenceTrainer, folder: str) -> None:
        if self.state.global_step == 4:
            raise Killed
        original(self, folder)

    original = PreferenceTrainer._save_optimizer_and_scheduler
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(PreferenceTrainer, "_save_optimizer_and_scheduler", killed)
        trainer_of(build(), referred, _saving(tmp_path)).train()
    cut = tmp_path / "checkpoint-4"
    assert (cut / "model.safetensors").exists()
    assert not (cut / COMPLETE).exists()
    assert Path(last_complete_checkpoint(tmp_path) or "").name == "checkpoint-3"
    weights, _ = resumed(build, referred, tmp_path)
    assert_bits(weights, uninterrupted[0])


def test_the_last_whole_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path / "absent") is None
    for step, whole in ((9, True), (10, True), (100, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


# --- what training leaves ---------------------------------------------------------------------------------------------


def test_a_saved_policy_is_a_plain_checkpoint_with_its_log(
    build: BuildPolicy, referred: EncodedPairs, arguments: Arguments, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    trainer = trainer_of(build(), referred, arguments(max_steps=2))
    trainer.train()
    save_policy(trainer, tokenizer, tmp_path / "policy")
    assert not (tmp_path / "policy" / "training_args.bin").exists()
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    assert_bits(stored, weights_of(trainer))
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "policy")) is LlamaForCausalLM
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").chat_template == tokenizer.chat_template
    history = json.loads((tmp_path / "policy" / "trainer_state.json").read_text())["log_history"]
    assert {
        "loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/explore", "rewards/margins",
        "rewards/accuracies", "logps/chosen", "logps/rejected", "logps/explore", "explore_is_chosen", "tokens_per_second",
        "padding_share",
    } <= history[0].keys()  # fmt: skip


def test_each_epoch_takes_its_own_order_of_the_plan(
    build: BuildPolicy, referred: EncodedPairs, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spy(self: BatchPlan, number: int) -> list[list[Slot]]:
        asked.append(number)
        return original(self, number)

    asked: list[int] = []
    original = BatchPlan.epoch
    monkeypatch.setattr(BatchPlan, "epoch", spy)
    trainer_of(build(), referred, arguments(num_train_epochs=3)).train()
    assert asked == [0, 1, 2]


def test_every_step_is_the_mean_over_its_own_pairs(build: BuildPolicy, referred: EncodedPairs, arguments: Arguments) -> None:
    policy = build()
    scorer = prefix_shared(copy.deepcopy(policy)).eval()
    losses, rewards = [], []
    for pair in referred.pairs:
        [values] = score_batch(scorer, [pair], pad_id=0, head_chunk=CHUNK)
        found = torch.tensor([*values[:2], values[pair.explore_index] if pair.explore else 0.0])
        parts, present = tuple(found[:, None].unbind(0)), torch.tensor([float(pair.explore is not None)])
        losses.append(SELM.losses(parts, torch.tensor(pair.reference)[:, None], (torch.ones(1), torch.ones(1)), present).item())
        rewards.append(SELM.beta * (values[0] - pair.reference[0]))
    trainer = trainer_of(policy, referred, arguments(**SGD | {"learning_rate": 1e-30}, num_train_epochs=1))
    trainer.train()
    slots = [slot for batch in plan_of(referred).epoch(0) for slot in batch]
    for step, line in enumerate(log_lines(trainer)):
        pairs = [slot.index for slot in slots[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH] if slot.weight]
        assert len(pairs) == (8, 8, 3)[step]
        assert line["loss"] == pytest.approx(sum(losses[index] for index in pairs) / len(pairs), rel=1e-5)
        assert line["rewards/chosen"] == pytest.approx(sum(rewards[index] for index in pairs) / len(pairs), rel=1e-4)
        explored = [p for p in map(referred.pairs.__getitem__, pairs) if p.explore is not None]
        share = sum(pair.explore == pair.chosen for pair in explored) / len(explored)
        assert line["explore_is_chosen"] == pytest.approx(share)
        assert line["rewards/margins"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"], rel=1e-4)
