"""Tokens before a run: rendered by the functions of the stages, refused where these would differ or a turn would not end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.graph.rules_run import check_rule
from handbook_ext.graph.stages import CheckStage
from handbook_ext.planning import context, tokens
from tests.conftest import TEXTS
from tests.policies.families import FAMILIES, tokenizer_of
from tests.recipe_folder import enter_folder, mine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

START = "model: {{name_or_path: {}, architecture: null, tokenizer_vocab_size: null, chat_template: {}}}\n"
ZEPHYR_BUT = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
GENERATION = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


@pytest.fixture
def saved(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Returns a function that saves the tokenizer with another template, BOS added or not, as a checkpoint has it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    def save(template: str | None = None, bos: bool = False, name: str = "start") -> Path:
        tokenizer.save_pretrained(folder / name)
        made: Any = AutoTokenizer.from_pretrained(folder / name)
        made.chat_template = template if template is not None else tokenizer.chat_template
        if bos:
            made.backend_tokenizer.post_processor = TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", made.convert_tokens_to_ids("<s>"))]
            )
        made.save_pretrained(folder / name)
        (folder / name / "config.json").write_text('{"model_type": "llama"}')
        return folder / name

    return save


def settings_of(text: str) -> CheckStage:
    settings = check_rule(mine(text)).settings
    assert isinstance(settings, CheckStage)
    return settings


def rows(count: int = 6, words: int = 1) -> list[OfflinePair]:
    return [
        OfflinePair.of(f"p{n}", user(" ".join([TEXTS[0]] * (1 + n % 3) * words)), assistant(TEXTS[1]), assistant(TEXTS[2]))
        for n in range(count)
    ]


def test_a_limit_beyond_the_context_of_the_policy_is_told(saved: Callable[..., Path]) -> None:
    folder = saved()
    start = START.format(folder, "null") + "sft: null\n"
    assert context.context_notes(settings_of(start + "train: {max_length: 2048}\n")) == []
    notes = context.context_notes(settings_of(start + "train: {max_length: 2049}\n"))
    assert notes[0] == f"iter0: train.max_length is 2049, but the context of {folder} is 2048 tokens" and len(notes) == 4
    notes = context.context_notes(settings_of("sft: {max_length: 2049}\n"))
    assert notes == ["sft.max_length is 2049, but the context of model.architecture is 2048 tokens"]
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_positions": 64}')  # A table, which ends there.
    with pytest.raises(UserError, match=r"iter0: train.max_length is 65, but the context of .*start is 64 tokens; set it to"):
        context.context_notes(settings_of(start + "train: {max_length: 65}\n"))


def test_a_tokenizer_larger_than_the_embedding_is_refused(saved: Callable[..., Path]) -> None:
    folder = saved()
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 319}')
    with pytest.raises(UserError, match=r"numbers its entries up to 319 \(.*\), but the embedding has 319 rows"):
        context.context_notes(settings_of(START.format(folder, "null") + "sft: null\n"))


def test_a_checkpoint_that_renders_well_is_accepted_and_nothing_is_cut(saved: Callable[..., Path]) -> None:
    for template, bos in ((None, False), (None, True), ("{{ bos_token }}" + ZEPHYR_BUT + GENERATION, True)):
        settings = settings_of(START.format(saved(template, bos), "null") + "sft: null\n")
        [cut] = tokens.checked_tokens(settings, rows())
        assert (cut.rows, cut.either, cut.dropped) == (6, 0, 0)
        assert cut.iterations == ["iter0", "iter1", "iter2", "iter3"]


@pytest.mark.parametrize(("template", "bos", "words"), [
    ("{{ bos_token }}{{ bos_token }}" + ZEPHYR_BUT + GENERATION, True, "is rendered with 2 BOS at its head"),
    (ZEPHYR_BUT.replace("{{ eos_token }}", "{{ eos_token }}{{ eos_token }}") + GENERATION, False, "ends with two end tokens"),
    (ZEPHYR_BUT + "{% if add_generation_prompt %}other{% endif %}", False, "no longer begins with the prompt as rendered"),
])  # fmt: skip
def test_tokens_that_begin_or_end_wrongly_are_refused(saved: Callable[..., Path], template: str, bos: bool, words: str) -> None:
    settings = settings_of(START.format(saved(template, bos), "null") + "sft: null\n")
    with pytest.raises(UserError, match=words):
        tokens.checked_tokens(settings, rows())


def test_another_template_than_the_tuned_checkpoints_is_refused_unless_sft_follows(saved: Callable[..., Path]) -> None:
    own = saved(ZEPHYR_BUT.replace("<|", "[").replace("|>", "]") + GENERATION.replace("<|", "[").replace("|>", "]"))
    with pytest.raises(UserError, match=r"model\.chat_template 'zephyr' renders p5 otherwise than the template of"):
        tokens.checked_tokens(settings_of(START.format(own, "zephyr") + "sft: null\n"), rows())
    tokens.checked_tokens(settings_of(START.format(own, "zephyr")), rows())
    tokens.checked_tokens(settings_of(START.format(saved(), "zephyr") + "sft: null\n"), rows())


@pytest.mark.parametrize("stage", ["generate", "score", "train"])
def test_a_stage_that_sees_other_tokens_is_refused_by_name(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    name = {"generate": "jobs_of", "score": "encode_groups", "train": "encode_pairs"}[stage]
    real = getattr(tokens, name)

    def other(items: Any, encoder: Any, **more: Any) -> Any:
        encoder._with_bos = lambda ids: [7, *ids]
        return real(items, encoder, **more)

    monkeypatch.setattr(tokens, name, other)
    with pytest.raises(UserError, match=r"would see other tokens of the prompt than generate, from token 1 on \("):
        tokens.checked_tokens(settings_of(START.format(saved(), "null") + "sft: null\n"), rows())


LIMITED = "sft: null\ntrain: {max_length: 100, max_prompt_length: 60}\n"


def test_truncation_is_counted_and_limited(saved: Callable[..., Path], tokenizer: PreTrainedTokenizerFast) -> None:
    text = START.format(saved(), "null") + LIMITED
    given = rows(9)
    [cut] = tokens.checked_tokens(settings_of(text), given)
    assert (cut.rows, cut.prompts, cut.dropped) == (9, 6, 0)  # Two of three repeat the question.
    assert 0 < cut.completions <= 9
    assert cut.either >= cut.prompts
    assert cut.record()["prompts"] == pytest.approx(6 / 9)
    assert "iter0, iter1, iter2, iter3: of 9 rows looked at, the prompt is cut in 66.7%" in cut.line
    for limit, refused in ((cut.either / 9, False), (cut.either / 9 - 0.01, True), (0, True)):
        settings = settings_of(text + f"data: {{max_truncated: {limit:.6f}}}\n")
        if refused:
            with pytest.raises(UserError, match=r"data\.max_truncated allows .* raise train.max_length or"):
                tokens.checked_tokens(settings, given)
        else:
            settings = settings.model_copy(update={"max_truncated": cut.either / 9})
            tokens.checked_tokens(settings, given)


def test_limits_that_differ_between_iterations_are_counted_apart(saved: Callable[..., Path]) -> None:
    text = START.format(saved(), "null") + LIMITED + "iterations: {iter2: {train: {max_prompt_length: 90}}}\n"
    cuts = tokens.checked_tokens(settings_of(text), rows(9))
    assert [cut.iterations for cut in cuts] == [["iter0", "iter1", "iter3"], ["iter2"]]
    assert cuts[0].prompts > cuts[1].prompts


def test_a_prompt_that_leaves_no_room_is_told_before_anything_runs(saved: Callable[..., Path]) -> None:
    text = START.format(saved(), "null") + "sft: null\ntrain: {max_length: 60}\n"
    with pytest.raises(UserError, match="which leaves no room in max_length 60"):
        tokens.checked_tokens(settings_of(text), rows(9))
    [cut] = tokens.checked_tokens(settings_of(text + "data: {long_prompts: drop}\n"), rows(9))
    assert (cut.dropped, cut.prompts) == (6, 0)
    assert "66.7% dropped as too long" in cut.line


def test_a_sample_of_a_thousand_rows_is_looked_at(saved: Callable[..., Path]) -> None:
    settings = settings_of(START.format(saved(), "null") + "sft: null\n")
    [cut] = tokens.checked_tokens(settings, rows(2500))
    assert cut.rows == 1000


@pytest.mark.parametrize(("template", "bos", "words"), [
    ("", False, "has no chat template; use a reward model that has one"),
    ("{{ bos_token }}{{ bos_token }}" + ZEPHYR_BUT, True, "rank.model: .*judge: the prompt of p5 is rendered with 2 BOS"),
    (ZEPHYR_BUT, True, "is rendered with no BOS"),
    ("{{ messages[-1]['content'] }}", False, "leaves out the last turn of the user"),
])  # fmt: skip
def test_what_a_reward_model_would_read_is_looked_at(saved: Callable[..., Path], template: str, bos: bool, words: str) -> None:
    start, judge = saved(), saved(template, bos, name="judge")
    rank = f"rank: {{ranker: reward_model, model: {judge}}}\ndata: {{dataset: some/pairs}}\nsft: null\n"
    with pytest.raises(UserError, match=words):
        tokens.checked_tokens(settings_of(START.format(start, "null") + rank), rows())
    saved("{{ bos_token }}" + ZEPHYR_BUT, True, name="judge")
    tokens.checked_tokens(settings_of(START.format(start, "null") + rank), rows())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_templates_of_every_family_end_a_turn_as_they_should(name: str) -> None:
    made = tokenizer_of(name)
    ends = frozenset(made.convert_tokens_to_ids(list(FAMILIES[name].generation_ends)))
    tokens.refuse_wrong_ends(tokens.Opened(made, ends), rows(1)[0], name)
