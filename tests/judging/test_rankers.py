"""Rankers: a classifier's scores stand alone, truncation is told, ranks and ties are by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion, Messages, OfflinePair, assistant, completion_id, user
from handbook_ext.data.tiny_world import best_answer, request_prompt, true_reward
from handbook_ext.judging.oracle import Oracle
from handbook_ext.judging.ranker import CandidateSet, Unjudged, Verdict, by_length, candidates_of, ranking, rewards
from handbook_ext.judging.rankers import Bench, external_ranker_hashes, open_ranker, ranker_id, refuse_unfit
from handbook_ext.judging.reward_model import RewardModel, pair_ids, second_text
from handbook_ext.recipes.settings import FITTED, RankSettings
from tests.small_encoder import save_encoder

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


def reward_model(source: str, *, batch_size: int = 4, max_length: int = 256, **more: Any) -> RewardModel:
    return RewardModel(source, device=CPU, batch_size=batch_size, max_length=max_length, **more)


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


def test_one_of_several_outputs_is_the_reward_by_number_or_name(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    source = save_classifier(tmp_path, tokenizer, outputs=3)
    with pytest.raises(
        UserError, match=r"has 3 outputs: 0 \(LABEL_0\), 1 \(LABEL_1\), .*; say which is the reward in rank.output"
    ):
        reward_model(source)
    with pytest.raises(UserError, match=r"rank.output: .* has no output 'helpfulness'; it has: 0 \(LABEL_0\)"):
        reward_model(source, output="helpfulness")
    model = reward_model(source, output=2)
    ids = model.tokenizer.apply_chat_template([*ITEMS[3][0], *assistant(ITEMS[3][1])], tokenize=True, return_dict=True)[
        "input_ids"
    ]
    with torch.no_grad():
        wanted = model.model(torch.tensor([ids])).logits[0].tolist()
    for column in range(3):
        for name in (column, str(column), f"LABEL_{column}"):
            assert values(reward_model(source, output=name).score([ITEMS[3]])) == pytest.approx([wanted[column]], abs=1e-5)


@pytest.mark.parametrize("budget", [1, 20, 60, 10_000])
def test_batches_by_tokens_give_the_same_rewards(classifier: str, budget: int) -> None:
    model = reward_model(classifier, tokens_per_batch=budget)
    assert values(model.score(ITEMS)) == pytest.approx(values(reward_model(classifier).score(ITEMS)), abs=1e-5)
    lengths = [7, 3, 9, 2, 5]
    batches = list(by_length(lengths, 2, budget))
    assert sorted(place for batch in batches for place in batch) == list(range(5))
    assert all(len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= budget for batch in batches)


def test_bf16_is_near(classifier: str) -> None:
    exact, rounded = (values(reward_model(classifier, bf16=choice).score(ITEMS)) for choice in (False, True))
    assert rounded == pytest.approx(exact, abs=0.1) and rounded != exact


def test_without_a_template_prompt_and_answer_are_a_pair_of_texts(tmp_path: Path) -> None:
    """As an encoder is trained: [CLS] prompt [SEP] answer [SEP], the second text with segment 1."""
    folder = save_encoder(tmp_path)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    model = reward_model(folder, max_length=16)
    tokenizer = model.tokenizer
    prompt, answer = user("a b"), "c d e"
    batch = tokenizer("a b", answer, return_tensors="pt")
    with torch.no_grad():
        wanted = model.model(**batch).logits[0, 0].item()
    found = model.score([(prompt, answer), (prompt, "c " * 40), (user("[SEP] a"), "[CLS]"), (user(""), "")])
    assert found[0].score == pytest.approx(wanted, abs=1e-5)
    assert [each.truncated for each in found] == [False, True, False, False]
    ids = pair_ids(tokenizer, [(user("[SEP] a"), "[CLS]")])[0]
    assert (ids.count(tokenizer.sep_token_id), ids.count(tokenizer.cls_token_id)) == (2, 1)
    assert second_text(tokenizer, batch["input_ids"][0].tolist()) == batch["token_type_ids"][0].tolist()
    with pytest.raises(UserError, match=r"rank.text: template: .* has no chat template; set rank.text: pair"):
        reward_model(folder, text="template", max_length=16)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rank\.model: .* cannot be loaded as a sequence classifier"):
        reward_model(str(tmp_path / "nothing"))


def test_rankers_are_opened_by_name(classifier: str, tmp_path: Path) -> None:
    bench = Bench(CPU, tmp_path)
    assert isinstance(open_ranker(RankSettings(ranker="oracle"), bench), Oracle)
    named = open_ranker(RankSettings(ranker="reward_model", model=classifier, max_length=64), bench)
    fitted = open_ranker(RankSettings(ranker="reward_model"), Bench(CPU, tmp_path, Path(classifier)))
    assert isinstance(named, RewardModel) and isinstance(fitted, RewardModel) and named.max_length == 64
    assert not named.setwise
    with pytest.raises(UserError, match="self judges the policy's own samples, and no policy is given"):
        open_ranker(RankSettings(ranker="self"), bench)


def test_candidates_are_judged_set_by_set(classifier: str) -> None:
    model = reward_model(classifier)
    sets = [CandidateSet(ITEMS[0][0], ["a lamp", "bread"]), CandidateSet(ITEMS[1][0], []), CandidateSet(ITEMS[2][0], ["socks"])]
    found = model.judge(sets)
    assert [len(each) for each in found] == [2, 0, 1]
    alone = [model.score([(sets[0].prompt, "bread")])[0].score, model.score([(sets[2].prompt, "socks")])[0].score]
    assert [found[0][1].score, found[2][0].score] == pytest.approx(alone, abs=1e-5)


def test_the_reward_of_one_answer_is_its_score_beside_chosen_and_rejected_where_candidates_are_compared() -> None:
    """A13 of the notes on the papers: PairRM gives no score to an answer alone."""
    row = OfflinePair.of("p", user("q"), assistant("good"), assistant("bad"))
    asked: list[CandidateSet] = []

    class Compared:
        setwise = True

        def judge(self, sets: Sequence[CandidateSet]) -> list[list[Verdict]]:
            asked.extend(sets)
            return [[Verdict(float(place)) for place, _ in enumerate(each.texts, 7)] for each in sets]

        def facts(self) -> dict[str, Any]:
            return {}

    assert rewards(Compared(), [row, row], ["own", "other"]) == [Verdict(7.0)] * 2
    assert asked == [CandidateSet(row.prompt, ["own", "good", "bad"]), CandidateSet(row.prompt, ["other", "good", "bad"])]
    alone = Oracle()
    prompt = request_prompt(1)
    pair = OfflinePair.of("p", user(prompt), assistant("x"), assistant("y"))
    assert rewards(alone, [pair], [best_answer(prompt)]) == alone.score([(user(prompt), best_answer(prompt))])


@pytest.mark.parametrize(
    ("right", "pairs", "least", "fit"),
    [
        (0.9, 50, 0.5, True),
        (0.4, 50, 0.5, True),
        (0.2, 50, 0.5, False),
        (0.33, 3, 0.5, True),
        (0.2, 50, 0.0, True),
        (0.6, 900, 0.7, False),
    ],
)
def test_a_fitted_reward_model_that_cannot_be_right_enough_does_not_label(
    tmp_path: Path, right: float, pairs: int, least: float, fit: bool
) -> None:
    (tmp_path / "model").mkdir()
    manifest = {"stage": "ranker", "inputs": {}, "sha256": "0", "files": {}, "key": "k", "settings": {}, "counts": {}}
    manifest["held_out"] = {"accuracy": right, "pairs": pairs}
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    rank = RankSettings(ranker="reward_model", min_accuracy=least)
    if fit:
        refuse_unfit(rank, tmp_path / "model")
    else:
        with pytest.raises(UserError, match=rf"is right on {right:.1%} of {pairs} held-out pairs, at most .* below {least:.1%}"):
            refuse_unfit(rank, tmp_path / "model")
    refuse_unfit(rank, None)


def test_rankers_of_a_kind_are_told_apart() -> None:
    assert ranker_id(RankSettings(ranker="oracle"), None, {}) == ""
    assert ranker_id(RankSettings(ranker="reward_model", model="a/b", revision="c", max_length=9), None, {}) == "a/b@c, 9 tokens"
    named = RankSettings(ranker="reward_model", model="a/b", output="x", max_length=9)
    assert ranker_id(named, None, {"ranker": "f" * 64}) == f"a/b@{'f' * 12}, 9 tokens, output x"
    pairrm = RankSettings(ranker="pairrm", model="a/b", source_max_length=10, candidate_max_length=9)
    assert ranker_id(pairrm, None, {}) == "a/b, 10+9 tokens"
    assert ranker_id(RankSettings(ranker="judge", model="gpt"), None, {}) == "gpt, single"
    assert FITTED == "fitted "


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
        == external_ranker_hashes(RankSettings(ranker="oracle"))
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
