"""Rankers: a classifier's scores stand alone, truncation is told, ranks and ties are by hand."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion, Messages, OfflinePair, assistant, completion_id
from handbook_ext.data.tiny_world import best_answer, request_prompt, true_reward
from handbook_ext.judging.rankers import (
    Oracle,
    RewardModel,
    Unjudged,
    Verdict,
    candidates_of,
    external_ranker_hashes,
    make_ranker,
    ranking,
)
from handbook_ext.recipes.settings import RankSettings

CPU = torch.device("cpu")
WORDS = ["warm", "socks", "a", "lamp", "bread", "and", "good", "book", "for", "the", "lake", "in", "winter"]
ITEMS: list[tuple[Messages, str]] = [
    ([{"role": "user", "content": " ".join(WORDS[: 1 + number % 5])}], " ".join(WORDS[number % 3 : 3 + (5 * number) % 11]))
    for number in range(11)
]


def save_classifier(folder: Path, tokenizer: PreTrainedTokenizerFast, outputs: int = 1) -> str:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, initializer_range=0.2, num_labels=outputs, pad_token_id=tokenizer.pad_token_id,
        attention_dropout=0.2,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("classifier"), tokenizer)


def reward_model(source: str, *, batch_size: int = 4, max_length: int = 256) -> RewardModel:
    return RewardModel(source, device=CPU, batch_size=batch_size, max_length=max_length)


def values(verdicts: Sequence[Verdict]) -> list[float]:
    return [verdict.score for verdict in verdicts]


@pytest.mark.parametrize("batch_size", [2, 3, 11, 64])
def test_scores_do_not_depend_on_the_batch(classifier: str, batch_size: int) -> None:
    alone = values(reward_model(classifier, batch_size=1).score(ITEMS))
    assert values(reward_model(classifier, batch_size=batch_size).score(ITEMS)) == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert max(alone) - min(alone) > 0.1


def test_scores_come_in_the_order_of_the_items(classifier: str) -> None:
    ranker = reward_model(classifier)
    forward, backward = values(ranker.score(ITEMS)), values(ranker.score(ITEMS[::-1]))
    assert backward[::-1] == pytest.approx(forward, rel=1e-5, abs=1e-5)
    assert ranker.score([]) == []


def test_a_score_is_the_classifiers_logit_on_the_whole_conversation(classifier: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    for (prompt, text), verdict in zip(ITEMS[:4], reward_model(classifier).score(ITEMS[:4]), strict=True):
        chat = tokenizer.apply_chat_template([*prompt, *assistant(text)], tokenize=False)
        ids = tokenizer(chat, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert verdict.score == pytest.approx(model(input_ids=ids).logits.item(), rel=1e-5, abs=2e-6)
        assert not verdict.truncated


def test_a_long_text_is_judged_by_its_end_and_told(classifier: str, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, text = ITEMS[4]
    chat = tokenizer.apply_chat_template([*prompt, *assistant(text)], tokenize=False)
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    [cut] = reward_model(classifier, max_length=len(ids) - 5).score([(prompt, text)])
    assert cut.truncated
    assert cut.score == pytest.approx(model(input_ids=torch.tensor([ids[5:]])).logits.item(), rel=1e-5, abs=2e-6)
    [whole] = reward_model(classifier, max_length=len(ids)).score([(prompt, text)])
    assert not whole.truncated


def test_a_classifier_of_two_outputs_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 2 outputs; a reward model has one"):
        reward_model(save_classifier(tmp_path, tokenizer, outputs=2))


def test_a_classifier_without_template_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        reward_model(save_classifier(tmp_path, bare))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rank\.model: .* cannot be loaded as a sequence classifier"):
        reward_model(str(tmp_path / "nothing"))


def test_rankers_are_made_by_name(classifier: str) -> None:
    def make(kind: str, source: str | None) -> object:
        return make_ranker(kind, source, device=CPU, batch_size=2, max_length=64)

    assert isinstance(make("oracle", None), Oracle)
    assert isinstance(make("reward_model", classifier), RewardModel)
    for kind, source in (("pairrm", None), ("judge", "model"), ("reward_model", None)):
        with pytest.raises(UserError, match=f"'{kind}' is not part of this version; it has: oracle, reward_model"):
            make(kind, source)


def test_the_oracle_gives_the_true_reward() -> None:
    prompt = request_prompt(3)
    items: list[tuple[Messages, str]] = [
        ([{"role": "user", "content": prompt}], best_answer(prompt)), ([{"role": "user", "content": prompt}], "no idea"),
    ]  # fmt: skip
    assert values(Oracle().score(items)) == [true_reward(prompt, best_answer(prompt)), true_reward(prompt, "no idea")]
    assert Oracle().score(items)[0].score > Oracle().score(items)[1].score


@pytest.mark.parametrize(
    ("scores", "ranks", "ties"),
    [
        ([3.0, 1.0, 2.0], [1, 3, 2], 0),
        ([2.0, 2.0, 1.0], [1, 1, 3], 2),
        ([1.0, 2.0, 1.0], [2, 1, 2], 2),
        ([5.0, 5.0, 5.0], [1, 1, 1], 3),
        ([1.0, 2.0, 1.0, 2.0], [3, 1, 3, 1], 4),
    ],
)
def test_equal_scores_share_the_better_rank(scores: list[float], ranks: list[int], ties: int) -> None:
    found = ranking(
        "p", [], [(Unjudged("on_policy", number, "text", "id"), Verdict(score)) for number, score in enumerate(scores)]
    )
    assert [candidate.rank for candidate in found.candidates] == ranks
    assert [candidate.score for candidate in found.candidates] == scores
    assert found.ties == ties


def test_a_ranking_tells_which_texts_were_cut() -> None:
    sample, label = Unjudged("on_policy", 0, "a", "id a"), Unjudged("offline", None, "b", "id b")
    found = ranking("p", [], [(sample, Verdict(1.0, True)), (label, Verdict(2.0))])
    assert [candidate.truncated for candidate in found.candidates] == [True, False]


def test_candidates_are_samples_then_chosen_then_rejected() -> None:
    samples = [
        Completion.of(
            "p", [], f"y{number}", sample=number, finish_reason="stop", seed=0, prompt_tokens=1, completion_tokens=1
        )
        for number in range(2)
    ]  # fmt: skip
    offline = OfflinePair.of("p", [], assistant("y_w"), assistant("y_l"))
    wanted = [("on_policy", 0, "y0"), ("on_policy", 1, "y1"), ("offline", None, "y_w"), ("offline", None, "y_l")]
    ids = {text: completion_id("p", [], assistant(text)) for *_, text in wanted}
    assert candidates_of(samples, offline) == [(*each, ids[each[-1]]) for each in wanted]
    assert candidates_of(samples, None) == [(*each, ids[each[-1]]) for each in wanted[:2]]


def test_a_judged_candidate_keeps_text_sample_and_id() -> None:
    sample, label = Unjudged("on_policy", 0, "a", "id a"), Unjudged("offline", None, "b", "id b")
    found = ranking("p", [], [(sample, Verdict(1.0)), (label, Verdict(0.0, failed=True))]).candidates
    assert [(each.origin, each.sample, each.text, each.completion_id) for each in found] == [sample, label]
    assert [(each.rank, each.failed) for each in found] == [(1, False), (2, True)]


def test_a_reward_model_in_a_folder_is_named_by_its_content(classifier: str, tmp_path: Path) -> None:
    copied = shutil.copytree(classifier, tmp_path / "copied")
    named = [external_ranker_hashes(RankSettings(ranker="reward_model", model=str(place))) for place in (classifier, copied)]
    assert named[0] == named[1] != {}
    (copied / "config.json").write_text("{}")
    assert external_ranker_hashes(RankSettings(ranker="reward_model", model=str(copied))) != named[0]
    assert (
        external_ranker_hashes(RankSettings(ranker="reward_model", model="some/judge"))
        == external_ranker_hashes(RankSettings())
        == {}
    )


def test_the_files_of_a_ranker_are_those_that_make_watches(tmp_path: Path) -> None:
    """An adapter's base, and a rubric, make another judge; notes beside the weights do not."""
    for name, text in (("base/model.safetensors", "1"), ("a/adapter_config.json", '{"base_model_name_or_path": "../base"}')):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    rank = RankSettings(ranker="reward_model", model=str(tmp_path / "a"))
    before = external_ranker_hashes(rank)
    (tmp_path / "a/notes.md").write_text("read me")
    assert external_ranker_hashes(rank) == before
    (tmp_path / "base/model.safetensors").write_text("2")
    assert external_ranker_hashes(rank) != before
    (tmp_path / "own.jinja").write_text("{{ prompt }}")
    asked = RankSettings(ranker="self", rubric=str(tmp_path / "own.jinja"))
    assert external_ranker_hashes(asked) == {"rubric": sha256_of(tmp_path / "own.jinja")}
    assert external_ranker_hashes(RankSettings(ranker="self", rubric="tiny")) == {}
