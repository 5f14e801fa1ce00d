"""Completions grouped by prompt for scoring: each text once, longest groups first, too long prompts counted."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.records import Answer, Messages, assistant, completion_id, user
from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.packing import EncodedGroup
from handbook_ext.training.scoring import MICRO_BATCHES_PER_SHARD, EncodedGroups, TextGroup, encode_groups, store_batches


def group(prompt_id: str, prompt: str, *texts: str) -> TextGroup:
    made = TextGroup(prompt_id, user(prompt))
    for text in texts:
        made.add(Answer(assistant(text), name(prompt_id, prompt, text), "offline"))
    return made


def name(prompt_id: str, prompt: str, text: str) -> str:
    return completion_id(prompt_id, user(prompt), assistant(text))


def test_a_group_holds_each_text_once_by_its_id_in_the_store() -> None:
    made = group("p", "ask", "one", "two", "one")
    assert made.texts == {name("p", "ask", text): assistant(text) for text in ("one", "two")}


def test_a_group_without_what_is_known_keeps_prompt_and_other_texts() -> None:
    made = group("p", "ask", "one", "two")
    rest = made.without({name("p", "ask", "one"), "of another prompt"})
    assert rest == TextGroup("p", user("ask"), {name("p", "ask", "two"): assistant("two")})
    assert len(made.texts) == 2


def test_groups_are_batched_from_long_to_short_and_equal_ones_in_order() -> None:
    lengths = [3, 5, 3, 9, 5]
    encoded = EncodedGroups([np.array([1])] * 5, [[np.full(length - 1, 2)] for length in lengths])
    assert encoded.batches(2) == [[3, 1], [4, 0], [2]]
    assert encoded.batches(8) == [[3, 1, 4, 0, 2]]
    assert encoded.batches(8, tokens=10) == [[3], [1, 4], [0, 2]]


def test_texts_are_encoded_once_per_group_and_every_name_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    """Two texts that differ only behind what max_length keeps have the same tokens: one completion, both names."""
    encoder = ChatEncoder(tokenizer, max_length=40)
    tail = "warm socks, a lamp and bread " * 4
    texts = (tail + "one", tail + "two", "short")
    encoded = encode_groups([group("p", "ask", *texts), group("q", "what", "a", "b")], encoder)
    prompt = encoder.prompt_ids(user("ask"), "p")
    assert prompt is not None
    assert encoded.too_long == 0
    assert encoded.names == [
        [[name("p", "ask", texts[0]), name("p", "ask", texts[1])], [name("p", "ask", "short")]],
        [[name("q", "what", "a")], [name("q", "what", "b")]],
    ]
    long, short = (encoder.completion_ids(user("ask"), assistant(text), len(prompt)) for text in (texts[0], "short"))
    assert encoded.group(0) == EncodedGroup(prompt, [list(long), list(short)])
    assert [len(each) for each in encoded.completions] == [2, 2]


def test_prompts_that_are_too_long_are_counted_and_empty_groups_are_not(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = ChatEncoder(tokenizer, max_length=60, max_prompt_length=20, long_prompts="drop")
    long: Messages = user("a winter by the lake " * 9)
    empty = [TextGroup("none", user("ask")), TextGroup("long", long)]
    groups = [empty[0], group("p", long[0]["content"], "x"), empty[1], group("q", "ask", "y")]
    encoded = encode_groups(groups, encoder)
    assert encoded.too_long == 1
    assert encoded.names == [[[name("q", "ask", "y")]]]
    assert len(encoded) == 1


def test_the_store_is_filled_in_the_micro_batches_of_the_first_epoch() -> None:
    plan = BatchPlan(list(range(1, 100)), 4, 1, seed=3)
    shards = store_batches(plan)
    assert [batch for shard in shards for batch in shard] == plan.epoch(0)
    assert [len(shard) for shard in shards] == [MICRO_BATCHES_PER_SHARD] * 3 + [100 - 3 * MICRO_BATCHES_PER_SHARD]
