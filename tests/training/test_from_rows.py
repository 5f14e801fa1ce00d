"""TRL's script with five lines changed: the same losses, from rows to trained weights; and what is refused in one line."""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
import random
import re
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from handbook_ext import Objective, PreferenceTrainer, UserError, load_pairs, score_pairs

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy

SCRIPTS = Path(__file__).parent / "side_by_side"
# Zephyr's template leaves a newline behind the end token, which TRL scores and this package does not.
NO_NEWLINE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "apples and plums for a picnic by the lake in the winter with a book and a lamp".split()  # noqa: SIM905

# The arguments of both trainers that the tests set; TRL has other defaults for some.
KEPT = (
    "lr_scheduler_type", "warmup_steps", "logging_steps", "save_strategy", "report_to", "use_cpu", "seed", "disable_tqdm",
    "dataloader_pin_memory",
)  # fmt: skip

RawRow = dict[str, Any]


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


@pytest.fixture
def rows() -> list[RawRow]:
    """Eight rows of TRL's conversational format."""
    draw = random.Random(4)

    def words() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))

    return [
        {"prompt": turn("user", words()), "chosen": turn("assistant", words()), "rejected": turn("assistant", words())}
        for _ in range(8)
    ]


@pytest.fixture
def chat(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = NO_NEWLINE
    return tokenizer


def losses_of(trainer: Any) -> list[float]:
    """The logged loss of each step."""
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_the_scripts_differ_in_five_lines() -> None:
    theirs, ours = ((SCRIPTS / name).read_text().splitlines() for name in ("with_trl.py", "with_handbook_ext.py"))
    changed = [line for line in difflib.ndiff(theirs, ours) if line.startswith("+ ") and line[2:].strip()]
    assert len(changed) == 5


def test_trls_script_and_ours_give_the_same_losses(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build("llama", seed=1).save_pretrained("sft-model")
    chat.save_pretrained("sft-model")
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs, ours = (runpy.run_path(str(SCRIPTS / name))["trainer"] for name in ("with_trl.py", "with_handbook_ext.py"))
    ids = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in theirs.train_dataset]
    assert ids == [(pair.prompt, pair.chosen, pair.rejected) for pair in ours.pairs]
    assert len(losses_of(ours)) == 4
    assert losses_of(ours)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses_of(ours)[3] < 0.6
    assert losses_of(ours) == pytest.approx(losses_of(theirs), rel=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "robust", "hinge"])
def test_other_losses_and_steps_over_different_batches_equal_trls(
    loss_type: str, build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    common = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "warmup_steps": 0}
    common |= {"num_train_epochs": 1, "learning_rate": 1e-3}
    smoothing = 0.2 if loss_type == "robust" else 0.0
    objective = Objective(loss_type=loss_type, beta=0.3, options={"label_smoothing": smoothing} if smoothing else {})
    ours = PreferenceTrainer.from_rows(build("llama", seed=1), chat, Dataset.from_list(rows), objective, arguments(**common))
    # TRL goes through its rows in order, so they are put in the order of our batches.
    order = [slot.index for batch in ours.plan.epoch(0) for slot in batch]
    shared = {key: value for key, value in arguments().to_dict().items() if key in KEPT} | common
    args = DPOConfig(
        output_dir=str(tmp_path), loss_type=loss_type, label_smoothing=smoothing, beta=0.3, bf16=False,
        train_sampling_strategy="sequential", gradient_checkpointing=False, **shared,
    )  # fmt: skip
    in_order = Dataset.from_list([rows[index] for index in order])
    models = build("llama", seed=1), build("llama", seed=1)
    theirs = DPOTrainer(*models, args=args, train_dataset=in_order, processing_class=chat)
    for trainer in (ours, theirs):
        trainer.train()
    assert len(set(losses_of(ours))) == len(losses_of(ours)) == 4
    assert losses_of(ours) == pytest.approx(losses_of(theirs), rel=1e-5)
    for name, weight in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name), weight, rtol=0, atol=1e-5)


# --- rows and log-probs -----------------------------------------------------------------------------------------------


def test_strings_messages_and_implicit_prompts_are_the_same_pair(rows: list[RawRow]) -> None:
    row = rows[0]
    text = {name: value[0]["content"] for name, value in row.items()}
    implicit = {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
    whole = {**implicit, "prompt": row["prompt"]}
    pairs = load_pairs([row, text, implicit, whole, {**row, "explore": row["rejected"]}, {**text, "explore": text["rejected"]}])
    assert pairs[:4] == pairs[:1] * 4
    assert (pairs[0].prompt, pairs[0].chosen, pairs[0].rejected) == (row["prompt"], row["chosen"], row["rejected"])
    assert pairs[0].explore is None
    assert pairs[4] == pairs[5]
    assert pairs[4].explore == row["rejected"]


def test_rows_whose_completions_are_equal_are_left_out_with_a_warning(rows: list[RawRow]) -> None:
    equal = {**rows[1], "rejected": rows[1]["chosen"]}
    with pytest.warns(UserWarning, match="1 rows left out: chosen equals rejected"):
        assert load_pairs([rows[0], equal, rows[2]]) == load_pairs([rows[0], rows[2]])


HELLO = turn("user", "a book")
GOOD = {"prompt": HELLO, "chosen": turn("assistant", "apples"), "rejected": turn("assistant", "plums")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a book", "chosen": "apples"}, "rows[1]: the row has no 'rejected'"),
        ({**GOOD, "chosen": turn("assistant", " ")}, "rows[1]: the chosen completion is empty; repair the row or leave it out"),
        ({**GOOD, "rejected": ""}, "rows[1]: the rejected completion is empty"),
        ({**GOOD, "prompt": " "}, "rows[1]: the prompt is empty"),
        ({**GOOD, "prompt": []}, "rows[1]: the prompt is empty"),
        ({"chosen": "apples", "rejected": "plums"}, "rows[1]: 'chosen' is a plain string, so the row needs a 'prompt'"),
        ({**GOOD, "chosen": turn("user", "apples")}, "rows[1]: 'chosen' must end with a message of role 'assistant'"),
        ({**GOOD, "chosen": GOOD["chosen"] + HELLO + GOOD["chosen"]}, "rows[1]: chosen and rejected answer different prompts"),
        (
            {"prompt": HELLO, "chosen": HELLO * 2 + GOOD["chosen"], "rejected": HELLO * 2 + GOOD["rejected"]},
            "rows[1]: 'chosen' holds more than one message and does not begin with 'prompt'",
        ),
        ({**GOOD, "tools": [{"name": "search"}]}, "rows[1]: the column 'tools' is not supported"),
        ({**GOOD, "explore": turn("user", "apples")}, "rows[1]: 'explore' must be one message of role 'assistant'"),
        ("train", "rows[1] is a str, not a mapping; give one split"),
    ],
)
def test_a_row_that_cannot_be_a_pair_is_named(row: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_pairs([GOOD, row])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("rows", "message"), [({"train": [GOOD]}, "rows is a dict"), ([], "no preference pair is left of 0")])
def test_rows_that_are_no_rows_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_pairs(rows)


def test_log_probs_of_pairs_are_those_of_the_models_own_forward(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow]
) -> None:
    pairs = load_pairs([{**row, "explore": "a lamp"} if number % 2 else row for number, row in enumerate(rows)])
    model, plain = build("llama", seed=1).train(), build("llama", seed=1).eval()
    found = score_pairs(model, chat, pairs, batch_size=3)
    assert model.training
    assert [scores.explore is None for scores in found] == [True, False] * 4
    for pair, scores in zip(pairs, found, strict=True):
        head = chat.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
        for text, score in ((pair.chosen, scores.chosen), (pair.rejected, scores.rejected), (pair.explore, scores.explore)):
            if text is None or score is None:
                continue
            whole = head + text[0]["content"] + "</s>"
            prompt, ids = (chat(each, add_special_tokens=False)["input_ids"] for each in (head, whole))
            with torch.no_grad():
                logprobs = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(float(logprobs[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
            assert (score.total, score.tokens) == (pytest.approx(expected, rel=1e-5), len(ids) - len(prompt))


# --- training -----------------------------------------------------------------------------------------------------------


def logged(trainer: PreferenceTrainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]


def test_the_first_step_starts_from_the_given_model_to_the_bit(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments
) -> None:
    """Implicit rewards are 0 before the first update, as the reference model is the model as given, in the same batches."""
    trainer = PreferenceTrainer.from_rows(build(), chat, [{**row, "explore": "a lamp"} for row in rows],
                                          Objective(beta=0.3, alpha=0.1), arguments(num_train_epochs=1))  # fmt: skip
    trainer.train()
    assert {logged(trainer, f"rewards/{name}")[0] for name in ("chosen", "rejected", "explore")} == {0.0}


def test_dropout_of_the_given_model_is_off(chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments) -> None:
    """With it the policy would not be the one that was scored, and the implicit rewards of the first step not 0."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, hidden_dropout=0.4,
        attention_dropout=0.4, initializer_range=0.2,
    )  # fmt: skip
    trainer = PreferenceTrainer.from_rows(GPTNeoXForCausalLM(config), chat, rows, Objective(), arguments())
    trainer.train()
    assert {logged(trainer, f"rewards/{name}")[0] for name in ("chosen", "rejected")} == {0.0}


def test_another_reference_model_may_be_given(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments
) -> None:
    reference, pairs = build(seed=2), load_pairs(rows)
    trainer = PreferenceTrainer.from_rows(build(seed=1), chat, rows, Objective(), arguments(), reference_model=reference)
    expected = [(scores.chosen.total, scores.rejected.total) for scores in score_pairs(reference, chat, pairs)]
    for pair, values in zip(trainer.pairs, expected, strict=True):
        assert pair.reference[:2] == pytest.approx(values, rel=1e-5)


def test_the_global_batch_is_micro_batch_times_accumulation(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments
) -> None:
    trainer = PreferenceTrainer.from_rows(
        build(), chat, rows, Objective(), arguments(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    )
    assert (trainer.plan.global_batch_size, trainer.plan.micro_batch_size, trainer.plan.seed) == (6, 2, 7)


def _process(rank: int, port: int, make: Callable[[], PreferenceTrainer], folder: str) -> None:
    """One of two processes, forked: the environment that accelerate launch sets."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    trainer = make()
    trainer.train()
    found = {"batch": trainer.plan.global_batch_size, "reference": [pair.reference for pair in trainer.pairs]}
    torch.save({**found, "losses": losses_of(trainer)}, Path(folder) / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_scoring_and_train_as_one(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments, tmp_path: Path
) -> None:
    def make(accumulation: int) -> PreferenceTrainer:
        args = arguments(gradient_accumulation_steps=accumulation, per_device_train_batch_size=2, num_train_epochs=3)
        return PreferenceTrainer.from_rows(build(), chat, rows, Objective(beta=0.3), args)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    share = (port, lambda: make(2), str(tmp_path))
    torch.multiprocessing.start_processes(_process, args=share, nprocs=2, start_method="fork")
    one = make(4)
    one.train()
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        assert found["batch"] == 8
        assert torch.allclose(torch.tensor(found["reference"]), torch.tensor([pair.reference for pair in one.pairs]), rtol=1e-5)
    assert torch.load(tmp_path / "rank0.pt")["losses"] == pytest.approx(losses_of(one), rel=1e-5)


def test_a_loss_without_a_reference_trains_and_scores_nothing(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handbook_ext.training.from_rows.score_shard", None)
    trainer = PreferenceTrainer.from_rows(build(), chat, rows, Objective(loss_type="simpo"), arguments(warmup_steps=0))
    trainer.train()
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_peft_wraps_trains_its_adapters_alone(
    checkpointing: bool, build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments
) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, lora_dropout=0.5, task_type="CAUSAL_LM", target_modules="all-linear")
    model = get_peft_model(build(seed=1), lora)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    args = arguments(gradient_checkpointing=checkpointing, num_train_epochs=4)
    trainer = PreferenceTrainer.from_rows(model, chat, rows, Objective(beta=0.3), args)
    trainer.train()
    assert {logged(trainer, f"rewards/{name}")[0] for name in ("chosen", "rejected")} == {0.0}
    assert logged(trainer, "loss")[-1] < math.log(2) - 0.01
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert changed
    assert all("lora_" in name for name in changed)


def test_a_second_trainer_may_take_the_same_model(
    build: BuildPolicy, chat: PreTrainedTokenizerFast, rows: list[RawRow], arguments: Arguments
) -> None:
    model = build()
    first, second = (PreferenceTrainer.from_rows(model, chat, rows, Objective(), arguments()) for _ in range(2))
    assert [pair.reference for pair in first.pairs] == [pair.reference for pair in second.pairs]


def without(name: str) -> Callable[[Any, Any], None]:
    return lambda tokenizer, args: setattr(tokenizer, name, None)


@pytest.mark.parametrize(
    ("spoil", "objective", "message"),
    [
        (without("chat_template"), Objective(), "the tokenizer has no chat template; set tokenizer.chat_template"),
        (without("eos_token"), Objective(), "the tokenizer has no end token"),
        (lambda tokenizer, args: None, Objective(alpha=0.1), "no row has an 'explore', but the objective's alpha is 0.1"),
        (lambda tokenizer, args: setattr(args, "_n_gpu", 2), Objective(), "one process sees 2 GPUs"),
        (lambda tokenizer, args: setattr(args, "beta", 0.1), Objective(), "whose loss_type, beta and max_length would"),
    ],
    ids=["chat_template", "eos_token", "explore", "gpus", "DPOConfig"],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    spoil: Callable[[Any, Any], None], objective: Objective, message: str, build: BuildPolicy, chat: PreTrainedTokenizerFast,
    rows: list[RawRow], arguments: Arguments,
) -> None:  # fmt: skip
    args = arguments()
    spoil(chat, args)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        PreferenceTrainer.from_rows(build(), chat, rows, objective, args)
    assert "\n" not in str(caught.value)
