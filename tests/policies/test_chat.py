"""Messages to ids: one BOS at most, one end token, no role header in the completion, and every limit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, PreferencePair, assistant
from handbook_ext.policies.chat import ChatEncoder, Conversation
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.templates import ZEPHYR_TEMPLATE, apply_template

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QUESTION: Messages = [{"role": "user", "content": "What should I pack for the winter?"}]
DIALOGUE: Messages = [
    {"role": "system", "content": "Be brief."}, *QUESTION, *assistant("A lamp."), {"role": "user", "content": "And then?"},
]  # fmt: skip
ANSWER = assistant("Warm socks, bread, and a good book.")


@pytest.fixture(scope="module")
def llama3() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama-3's: it adds BOS itself, and the end of a turn is not its EOS."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [message["content"] for message in DIALOGUE + ANSWER] * 2,
        trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[(specials[0], 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=specials[0], eos_token=specials[1], pad_token=specials[1],
        additional_special_tokens=specials[2:], chat_template=LLAMA3_TEMPLATE,
    )  # fmt: skip


def encoder_of(tokenizer: PreTrainedTokenizerFast, max_length: int = 400, **limits: object) -> ChatEncoder:
    return ChatEncoder(tokenizer, max_length, **limits)  # type: ignore[arg-type]


def prompt_of(encoder: ChatEncoder, prompt: Messages) -> list[int]:
    ids = encoder.prompt_ids(prompt, "prompt p")
    assert ids is not None
    return ids


@pytest.mark.parametrize("text", ["Warm socks", "bread,\n  and a lamp\n\nplease", " two  spaces"])
def test_a_trained_tokenizer_gives_text_back_and_a_first_word_the_token_it_has_elsewhere(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    encoder = encoder_of(tokenizer)
    first, inside = (encoder.completion_ids(QUESTION, assistant(words), 10) for words in (text, "and " + text))
    assert tokenizer.decode(first[:-1]) == text
    if not text.startswith(" "):
        assert inside[-len(first) :] == first


@pytest.mark.parametrize("prompt", [QUESTION, DIALOGUE], ids=["one_turn", "dialogue"])
def test_a_zephyr_completion_is_its_text_and_one_end_token(tokenizer: PreTrainedTokenizerFast, prompt: Messages) -> None:
    encoder = encoder_of(tokenizer)
    ids = encoder.completion_ids(prompt, ANSWER, 0)
    assert ids[-1] == tokenizer.eos_token_id
    assert [token for token in ids if token in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    assert tokenizer.decode(ids).strip() == ANSWER[0]["content"] + "</s>"


@pytest.mark.parametrize("prompt", [QUESTION, DIALOGUE], ids=["one_turn", "dialogue"])
def test_a_prompt_ends_with_the_header_of_the_answer_and_begins_the_conversation(
    tokenizer: PreTrainedTokenizerFast, prompt: Messages
) -> None:
    ids = prompt_of(encoder_of(tokenizer), prompt)
    whole = tokenizer(tokenizer.apply_chat_template([*prompt, *ANSWER], tokenize=False), add_special_tokens=False)["input_ids"]
    assert whole[: len(ids)] == ids
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") in ids[-4:]


def test_no_bos_where_the_tokenizer_adds_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.bos_token_id is not None
    assert tokenizer.bos_token_id not in prompt_of(encoder_of(tokenizer), DIALOGUE)


@pytest.mark.parametrize("template", [LLAMA3_TEMPLATE, LLAMA3_TEMPLATE.replace("{{ bos_token }}", "")])
def test_one_bos_whoever_writes_it(llama3: PreTrainedTokenizerFast, template: str) -> None:
    llama3 = copy.deepcopy(llama3)
    llama3.chat_template = template
    encoder = encoder_of(llama3)
    ids = prompt_of(encoder, DIALOGUE)
    assert ids[0] == llama3.bos_token_id
    assert ids.count(llama3.bos_token_id) == 1
    assert llama3.bos_token_id not in encoder.completion_ids(DIALOGUE, ANSWER, len(ids))


def test_an_end_of_turn_that_is_not_eos_ends_the_completion_alone(llama3: PreTrainedTokenizerFast) -> None:
    ids = encoder_of(llama3).completion_ids(DIALOGUE, ANSWER, 0)
    assert [token for token in ids if token in llama3.all_special_ids] == [llama3.convert_tokens_to_ids("<|eot_id|>")]
    assert llama3.decode(ids[:-1]) == ANSWER[0]["content"]


def test_generation_stops_on_end_of_turn_and_on_eos(llama3: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = sorted([llama3.eos_token_id, llama3.convert_tokens_to_ids("<|eot_id|>")])
    assert encoder_of(llama3).end_ids() == expected
    assert encoder_of(tokenizer).end_ids() == [tokenizer.eos_token_id]


def test_prompt_and_completion_together_are_the_whole_conversation(llama3: PreTrainedTokenizerFast) -> None:
    encoder = encoder_of(llama3)
    prompt = prompt_of(encoder, DIALOGUE)
    whole = llama3(llama3.apply_chat_template([*DIALOGUE, *ANSWER], tokenize=False), add_special_tokens=False)["input_ids"]
    assert prompt + encoder.completion_ids(DIALOGUE, ANSWER, len(prompt)) == whole


def test_a_template_without_end_token_gets_one(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = ZEPHYR_TEMPLATE.replace("{{ eos_token }}", "")
    ids = encoder_of(bare).completion_ids(QUESTION, ANSWER, 0)
    assert ids == encoder_of(tokenizer).completion_ids(QUESTION, ANSWER, 0)
    assert ids.count(bare.eos_token_id) == 1


def test_a_long_prompt_keeps_the_header_of_its_first_message_and_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = prompt_of(encoder_of(tokenizer), DIALOGUE)
    encoder = encoder_of(tokenizer, 60, max_prompt_length=20)
    head = tokenizer("<|system|>\n", add_special_tokens=False)["input_ids"]
    assert prompt_of(encoder, DIALOGUE) == whole[: len(head)] + whole[len(head) - 20 :]
    assert encoder.cut_prompts == 1
    fits = encoder_of(tokenizer, 400, max_prompt_length=len(whole))
    assert prompt_of(fits, DIALOGUE) == whole
    assert fits.cut_prompts == 0


def test_a_completion_is_cut_where_prompt_and_completion_reach_max_length(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = encoder_of(tokenizer).completion_ids(QUESTION, ANSWER, 0)
    encoder = encoder_of(tokenizer, 40)
    assert encoder.completion_ids(QUESTION, ANSWER, 35) == whole[:5]
    assert encoder.cut_completions == 1
    assert encoder.completion_ids(QUESTION, ANSWER, 40 - len(whole)) == whole
    assert encoder.cut_completions == 1


def test_a_prompt_that_leaves_no_room_is_an_error_by_default(tokenizer: PreTrainedTokenizerFast) -> None:
    length = len(prompt_of(encoder_of(tokenizer), DIALOGUE))
    with pytest.raises(UserError, match=f"prompt p: the prompt has {length} tokens.*max_length {length}"):
        encoder_of(tokenizer, length).prompt_ids(DIALOGUE, "prompt p")
    assert encoder_of(tokenizer, length + 1).prompt_ids(DIALOGUE, "prompt p")


def test_a_prompt_that_leaves_no_room_can_be_dropped_or_cut_in_half_of_the_room(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = prompt_of(encoder_of(tokenizer), DIALOGUE)
    assert encoder_of(tokenizer, 30, long_prompts="drop").prompt_ids(DIALOGUE, "prompt p") is None
    assert encoder_of(tokenizer, 30, max_prompt_length=20, long_prompts="drop").prompt_ids(DIALOGUE, "p") is None
    assert prompt_of(encoder_of(tokenizer, 30, long_prompts="truncate"), DIALOGUE) == whole[:2] + whole[-13:]


def test_a_template_that_does_not_go_on_from_its_own_prompt_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    other = copy.deepcopy(tokenizer)
    other.chat_template = ZEPHYR_TEMPLATE.replace("%}<|assistant|>\n{% endif", "%}<|assistant|>\n<think>\n{% endif")
    assert other.chat_template != ZEPHYR_TEMPLATE
    with pytest.raises(UserError, match="no longer begins with the prompt"):
        encoder_of(other).completion_ids(QUESTION, ANSWER, 0)


def test_templates_come_from_the_recipe_a_file_or_the_checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    own = copy.deepcopy(tokenizer)
    (tmp_path / "own.jinja").write_text("own")
    apply_template(own, str(tmp_path / "own.jinja"), "here")
    assert own.chat_template == "own"
    apply_template(own, None, "here")
    assert own.chat_template == "own"
    apply_template(own, "zephyr", "here")
    assert own.chat_template == ZEPHYR_TEMPLATE


def test_a_checkpoint_without_template_is_an_error_that_says_what_to_set(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match=r"org/base: the tokenizer has no chat template; set model\.chat_template"):
        apply_template(bare, None, "org/base")
    with pytest.raises(UserError, match="'zephir' is neither a file nor one of: zephyr"):
        apply_template(bare, "zephir", "org/base")


def test_pairs_that_truncation_makes_equal_are_dropped_and_counted(
    tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]
) -> None:
    twins = make_pairs(1)[0].model_copy(
        update={
            "prompt_id": "twin", "chosen": assistant("a good book and bread"), "rejected": assistant("a good book and socks"),
        }
    )  # fmt: skip
    room = len(prompt_of(encoder_of(tokenizer), twins.prompt)) + 6
    encoded = encode_pairs([twins, *make_pairs(1)], encoder_of(tokenizer, room), explore=True)
    assert encoded.dropped == {"chosen equals rejected after truncation": 1}
    assert len(encoded.pairs) == 1
    with pytest.raises(UserError, match="no preference pair is left"):
        encode_pairs([twins], encoder_of(tokenizer, room), explore=True)


def test_dropped_prompts_and_explored_cases_are_counted(
    tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]
) -> None:
    pairs = make_pairs(8)
    everything = encode_pairs(pairs, encoder_of(tokenizer), explore=True)
    assert not everything.dropped
    assert [len(names) for names in everything.ids] == [len(pair.completions) for pair in everything.pairs]
    assert everything.notes == {
        "explored": 6, "explore is chosen": 2, "explore is rejected": 2, "prompts cut": 0, "completions cut": 0
    }  # fmt: skip
    limit = sorted(len(pair.prompt) for pair in everything.pairs)[4]
    few = encode_pairs(pairs, encoder_of(tokenizer, limit, long_prompts="drop"), explore=True)
    assert few.dropped["prompt too long"] == sum(len(pair.prompt) >= limit for pair in everything.pairs) > 0
    assert len(few.pairs) + sum(few.dropped.values()) == 8


def test_without_exploration_the_explored_samples_are_left_out(
    tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], list[PreferencePair]]
) -> None:
    encoded = encode_pairs(make_pairs(8), encoder_of(tokenizer), explore=False)
    assert all(pair.explore is None for pair in encoded.pairs)
    assert {len(names) for names in encoded.ids} == {2}


def test_a_legacy_prompt_ends_a_token_earlier_where_the_border_merges() -> None:
    """As TRL 0.8 has it, on which the official code is built: the merged token is the completion's, and neither text's own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=259, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(["~~"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        chat_template="{% for m in messages %}~{{ m['content'] }}~{% endfor %}{% if add_generation_prompt %}~{% endif %}",
    )  # fmt: skip
    merged, single = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("~~", "~"))
    assert len(merged) == len(single) == 1
    encoder = ChatEncoder(tokenizer, 64, legacy_template=True)
    [(prompt, [chosen, rejected])] = encoder.whole_ids(
        [Conversation([{"role": "user", "content": "q"}], [assistant("a"), assistant("b")], ["1", "2"], "row")]
    )
    letters = {each: tokenizer(each, add_special_tokens=False)["input_ids"][0] for each in "qab"}
    assert prompt == [tokenizer.bos_token_id, *single, letters["q"]]
    assert chosen == [*merged, letters["a"], *single, tokenizer.eos_token_id]
    assert rejected == [*merged, letters["b"], *single, tokenizer.eos_token_id]


def test_a_conversation_that_the_template_refuses_is_one_line(llama3: PreTrainedTokenizerFast) -> None:
    strict = copy.deepcopy(llama3)
    strict.chat_template = (
        "{% if messages | length > 1 and messages[0]['role'] == messages[1]['role'] %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}" + LLAMA3_TEMPLATE
    )
    with pytest.raises(
        UserError, match=r"refuses a conversation of the roles user, user \(roles must alternate\), .* 'What should"
    ):
        encoder_of(strict).prompt_ids(QUESTION * 2, "row 1")
