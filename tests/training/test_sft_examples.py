"""Which tokens of a conversation count in the loss of SFT: the ids are those of all later stages, packed or not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Demonstration, Messages, assistant, user
from handbook_ext.data.offline import load_offline_data
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.recipes.settings import DataSettings, SFTSettings
from handbook_ext.training.sft_examples import IGNORED, SFTExamples, examples_once, sft_examples
from handbook_ext.training.supervised import optimizer_arguments, sft_trainer
from tests.conftest import BuildPolicy

SPECIAL = ["<bos>", "<eos>", "<turn>", "<end>"]
HEADED = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
# As templates of reasoning models: an answer before the last one loses its beginning.
SHORTENED = HEADED.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].split('|')[-1] }}")
TURNS: Messages = [
    {"role": "system", "content": "Be brief."}, *user("What now?"), *assistant("A lamp."), *user("And then?"),
    *assistant("Warm socks, bread."), *user("Why?"), *assistant("It is cold."),
]  # fmt: skip
ANSWERS = [2, 4, 6]


def headed(template: str = HEADED) -> PreTrainedTokenizerFast:
    """A tokenizer that adds BOS itself, and whose turns do not end with its EOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [turn["content"] for turn in TURNS]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet))
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", additional_special_tokens=SPECIAL[2:],
        chat_template=template,
    )  # fmt: skip


def settings_of(**more: Any) -> SFTSettings:
    return SFTSettings(**{
        "learning_rate": 1e-3, "global_batch_size": 2, "per_device_train_batch_size": 2, "max_length": 400, **more
    })  # fmt: skip


def row(turns: Messages = TURNS) -> Demonstration:
    return Demonstration(prompt_id="p", prompt=turns[:-1], completion=turns[-1:])


def made(tokenizer: Any, *rows: Demonstration, long_prompts: str = "error", **more: Any) -> SFTExamples:
    settings = settings_of(**more)
    return sft_examples(list(rows), ChatEncoder(tokenizer, settings.max_length, long_prompts=long_prompts), settings)


def parts(tokenizer: Any, turns: Messages = TURNS) -> tuple[list[int], list[int]]:
    """The ids of a conversation's prompt and completion, as generation, scoring and preference training see them."""
    encoder = ChatEncoder(tokenizer, 400)
    prompt = encoder.prompt_ids(turns[:-1], "p")
    assert prompt is not None
    return prompt, encoder.completion_ids(turns[:-1], turns[-1:], len(prompt))


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def counted(example: dict[str, list[int]]) -> list[list[int]]:
    """The runs of tokens that count in the loss."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (token, IGNORED)
        if label != IGNORED:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


@pytest.fixture(params=["zephyr", "headed"])
def either(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    return tokenizer if request.param == "zephyr" else headed()


def test_by_default_the_last_answer_counts_alone(either: PreTrainedTokenizerFast) -> None:
    prompt, completion = parts(either)
    assert made(either, row()).rows == [{"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}]


def test_each_answer_counts_as_the_completion_of_what_stands_before_it(either: PreTrainedTokenizerFast) -> None:
    examples = made(either, row(), loss_on="assistant")
    [example] = examples.rows
    prompt, completion = parts(either)
    assert example["input_ids"] == prompt + completion
    places = [parts(either, TURNS[: index + 1]) for index in ANSWERS]
    assert counted(example) == [answer for _, answer in places]
    expected = [IGNORED] * len(example["input_ids"])
    for before, answer in places:
        expected[len(before) : len(before) + len(answer)] = answer
    assert example["labels"] == expected
    assert (examples.answers_found, examples.answers_left_out, examples.cut, examples.dropped) == (2, 0, 0, 0)
    single = row(TURNS[1:3])
    assert made(either, single, loss_on="assistant").rows == made(either, single).rows


def test_every_token_counts_where_a_recipe_says_all(either: PreTrainedTokenizerFast) -> None:
    ids = joined(parts(either))
    assert made(either, row(), loss_on="all").rows == [{"input_ids": ids, "labels": ids}]


def test_an_answer_to_nobody_does_not_count(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [*assistant("Hello."), *TURNS[1:5]]
    [example] = made(tokenizer, row(turns), loss_on="assistant").rows
    assert counted(example) == [parts(tokenizer, turns[: index + 1])[1] for index in (2, 4)]


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_a_long_conversation_loses_its_end(tokenizer: PreTrainedTokenizerFast, loss_on: str) -> None:
    whole = made(tokenizer, row(), loss_on=loss_on).rows[0]
    limit = len(parts(tokenizer, TURNS[:5])[0]) + 2  # Two tokens of the second answer.
    examples = made(tokenizer, row(), loss_on=loss_on, max_length=limit)
    assert examples.rows == [{name: ids[:limit] for name, ids in whole.items()}]
    assert (examples.cut, examples.dropped) == (1, 0)


def test_a_first_prompt_without_room_is_what_long_prompts_says(tokenizer: PreTrainedTokenizerFast) -> None:
    first, answer = parts(tokenizer, TURNS[:3])
    limit = len(first)
    assert 2 < limit // 2 < len(first)
    with pytest.raises(UserError, match=r"prompt p: the prompt has .* tokens"):
        made(tokenizer, row(), loss_on="assistant", max_length=limit)
    dropped = made(tokenizer, row(), row(TURNS[3:]), loss_on="assistant", max_length=limit, long_prompts="drop")
    assert (len(dropped.rows), dropped.dropped) == (1, 1)
    with pytest.raises(UserError, match="every prompt is too long"):
        made(tokenizer, row(), loss_on="all", max_length=limit, long_prompts="drop")
    [example] = made(tokenizer, row(), loss_on="assistant", max_length=limit, long_prompts="truncate").rows
    prompt = ChatEncoder(tokenizer, limit, long_prompts="truncate").prompt_ids(TURNS[:2], "p") or []
    whole = joined(parts(tokenizer))
    assert example["input_ids"] == (prompt + whole[len(first) :])[:limit] and len(prompt) < len(first)
    assert example["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert counted(example)[0] == answer[: limit - len(prompt)]


def test_a_template_that_shortens_earlier_answers_is_refused_where_none_could_count() -> None:
    """The tokens of such an answer are not those that the policy would generate there."""
    tokenizer = headed(SHORTENED)
    shortened = row([*user("a"), *assistant("why|b"), *user("c"), *assistant("d")])
    with pytest.raises(UserError, match=r"^sft.loss_on: assistant: the chat template renders an answer otherwise"):
        made(tokenizer, shortened, loss_on="assistant")
    examples = made(tokenizer, shortened, row(), loss_on="assistant")
    assert (examples.answers_found, examples.answers_left_out) == (2, 1)
    assert counted(examples.rows[0]) == [parts(tokenizer, [*shortened.prompt, *shortened.completion])[1]]
    every = made(tokenizer, shortened, loss_on="all")
    assert every.answers_left_out == 0 and every.rows[0]["labels"] == every.rows[0]["input_ids"]


def packed(tmp_path: Path, tokenizer: Any, policy: Any, examples: SFTExamples, settings: SFTSettings) -> Any:
    """TRL's trainer over the packed rows."""
    arguments = optimizer_arguments(settings, tmp_path, 1, 3)
    table, _ = examples_once(tmp_path, lambda: examples)
    return sft_trainer(policy, tokenizer, table, settings, arguments=arguments, callbacks=[])


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
def test_labels_stay_with_their_tokens_in_packed_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, build: BuildPolicy, loss_on: str
) -> None:
    rows = [row(), row(TURNS[1:3]), row(TURNS[5:])]
    longest = len(joined(parts(tokenizer)))
    settings = settings_of(loss_on=loss_on, packing=True, max_length=longest)
    examples = made(tokenizer, *rows, loss_on=loss_on, packing=True, max_length=longest)
    plain = made(tokenizer, *rows, loss_on=loss_on, max_length=longest)
    assert examples.rows == plain.rows
    trainer = packed(tmp_path, tokenizer, build(), examples, settings)
    cuts = []
    for each in trainer.train_dataset:
        start = 0
        for length in each["seq_lengths"]:
            cuts.append({name: each[name][start : start + length] for name in ("input_ids", "labels")})
            start += length
    assert len(trainer.train_dataset) < 3
    assert sorted(cuts, key=str) == sorted(plain.rows, key=str)


def test_wrapped_rows_are_strung_together_and_nothing_is_cut_off(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, build: BuildPolicy
) -> None:
    """As alignment-handbook packs: rows of max_length tokens, with a loss on each of them."""
    more = {"loss_on": "all", "packing": True, "packing_strategy": "wrapped", "max_length": 16}
    examples = made(tokenizer, row(), row(TURNS[1:3]), **more)
    ids = [*joined(parts(tokenizer)), *joined(parts(tokenizer, TURNS[1:3]))]
    assert (examples.cut, examples.dropped) == (0, 0)
    trainer = packed(tmp_path, tokenizer, build(), examples, settings_of(**more))
    table = trainer.train_dataset
    assert joined(table["input_ids"]) == joined(table["labels"]) == ids
    assert {len(each) for each in table["input_ids"][:-1]} == {16}
    rows = next(iter(trainer.get_train_dataloader()))["rows"]
    assert torch.bincount(rows.pair[0]).tolist() == [16, 16]
    assert rows.positions.tolist() == [[*range(16), *range(16)]]


def test_rows_that_are_packed_whole_attend_to_themselves_alone(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, build: BuildPolicy
) -> None:
    rows, more = [row(TURNS[1:3]), row(TURNS[3:5])], {"loss_on": "all", "packing": True}
    examples, policy = made(tokenizer, *rows, **more), build().eval()
    trainer = packed(tmp_path, tokenizer, policy, examples, settings_of(**more))
    [batch] = trainer.get_train_dataloader()
    rows = batch["rows"]
    with torch.no_grad():
        # A sum for each sequence, in place of one for all.
        each = replace(rows, owner=rows.pair[0][rows.predictors], completion_tokens=torch.zeros(2, dtype=torch.int64))
        together = policy(rows=each).tolist()
        alone = []
        for example in examples.rows:
            ids = torch.tensor(example["input_ids"])
            logprobs = policy(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            alone.append(float(logprobs.gather(1, ids[1:, None]).sum()))
    assert sorted(together) == pytest.approx(sorted(alone), rel=1e-5)


def test_a_strategy_without_packing_is_refused() -> None:
    with pytest.raises(ValidationError, match="packing_strategy wrapped needs packing: true"):
        settings_of(packing_strategy="wrapped")


def test_a_conversation_of_three_turns_reaches_sft_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """As UltraChat's rows: all turns up to the last answer; a question after it has no answer to learn."""
    (tmp_path / "sft.jsonl").write_text(json.dumps({"messages": [*TURNS, *user("Really?")], "prompt_id": "f0e3"}) + "\n")
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(pair) + "\n")
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test", "sft")}
    [demonstration] = load_offline_data(DataSettings(**files), seed=1).demonstrations
    assert [*demonstration.prompt, *demonstration.completion] == TURNS
    [example] = made(tokenizer, demonstration, loss_on="assistant").rows
    assert [tokenizer.decode(answer).strip() for answer in counted(example)] == [
        f"{TURNS[index]['content']}</s>" for index in ANSWERS
    ]


def test_the_rows_are_made_once_and_mapped_by_whoever_comes_later(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    examples = made(tokenizer, row(), row(TURNS[:3]), loss_on="assistant")
    table, counts = examples_once(tmp_path, lambda: examples)
    assert table[:] == {name: [each[name] for each in examples.rows] for name in ("input_ids", "labels")}
    again, counted_again = examples_once(tmp_path, lambda: pytest.fail("encoded a second time"))
    assert again[:] == table[:] and counted_again == counts
    (tmp_path / "examples.json").unlink()  # Of a process that was killed while it wrote the table.
    more = made(tokenizer, row())
    assert len(examples_once(tmp_path, lambda: more)[0]) == 1


@pytest.mark.parametrize("size", [0, 100])
def test_rows_that_were_cut_off_are_made_again(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    examples, table = made(tokenizer, row(), row(TURNS[:3]), loss_on="assistant"), tmp_path / "examples.arrow"
    examples.write(table)
    whole = table.read_bytes()
    (tmp_path / "examples.json").write_text(json.dumps({"counts": examples.counts(), "sha256": sha256_of(table)}))
    table.unlink()
    table.write_bytes(whole[:size])
    assert len(examples_once(tmp_path, lambda: examples)[0]) == 2
