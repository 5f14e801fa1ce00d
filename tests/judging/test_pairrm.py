"""PairRM: the original's scores at batch size 1, none that depends on the batch, and the best and worst of a tournament."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import hub

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, assistant, user
from handbook_ext.judging.pairrm import PairRM
from handbook_ext.judging.pairrm_model import MARKERS, load_pairrm
from handbook_ext.judging.pairrm_text import PairText, prompt_text
from handbook_ext.judging.ranker import CandidateSet, Unjudged, Verdict, ranking
from tests.judging.small_pairrm import Layout, save_pairrm

CPU = torch.device("cpu")
WORDS = [
    "lamp",
    "bread",
    "socks",
    "winter",
    "lake",
    "plum",
    "river",
    "stone",
    "candle",
    "wool",
    "kettle",
    "boots",
    "letter",
    "garden",
    "ladder",
    "apple",
]
SOURCE_MAX, CANDIDATE_MAX = 120, 60


def sentence(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def a_set(seed: int, *lengths: int, prompt: int = 8) -> CandidateSet:
    return CandidateSet(user(sentence(seed, prompt)), [sentence(100 * seed + n, words) for n, words in enumerate(lengths)])


SETS = [a_set(1, 4, 9, 2), a_set(2, 30, 6, 41, prompt=20), a_set(3, 60, 64, 59), a_set(4, 5, 5, 7, prompt=70)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    texts = [sentence(seed, 20) for seed in range(50)]
    place = tmp_path_factory.mktemp("pairrm")
    layouts: tuple[Layout, ...] = ("PairRM", "PairRM-hf")
    return {layout: save_pairrm(place / layout, texts, layout=layout) for layout in layouts}


def pairrm(folder: Path, **more: Any) -> PairRM:
    options = {"device": CPU, "source_max_length": SOURCE_MAX, "candidate_max_length": CANDIDATE_MAX, **more}
    return PairRM(str(folder), **options)


def scores(verdicts: list[list[Verdict]]) -> list[list[float]]:
    return [[verdict.score for verdict in each] for each in verdicts]


@pytest.fixture(scope="module")
def blender(folders: dict[str, Path]) -> Any:
    """The true llm-blender with our small weights."""
    if not hasattr(hub, "TRANSFORMERS_CACHE"):
        hub.TRANSFORMERS_CACHE = str(folders["PairRM"])
    pytest.importorskip("llm_blender")
    from handbook_ext.judging.llm_blender_pairrm import LlmBlenderRanker

    def build(batch_size: int) -> LlmBlenderRanker:
        return LlmBlenderRanker(
            str(folders["PairRM"]), device=CPU, batch_size=batch_size, source_max_length=SOURCE_MAX,
            candidate_max_length=CANDIDATE_MAX,
        )  # fmt: skip

    return build


def test_scores_and_ranks_are_those_of_the_original_at_batch_size_1(folders: dict[str, Path], blender: Any) -> None:
    theirs = blender(1).judge(SETS)
    for folder in folders.values():  # Both layouts hold the same weights.
        ours = pairrm(folder).judge(SETS)
        assert scores(ours) == [pytest.approx(each, abs=1e-5) for each in scores(theirs)]
        for own, other in zip(ours, theirs, strict=True):
            ranks = [
                [
                    candidate.rank
                    for candidate in ranking(
                        "p", [], [(Unjudged("on_policy", n, "", ""), each) for n, each in enumerate(row)]
                    ).candidates
                ]
                for row in (own, other)
            ]
            assert ranks[0] == ranks[1]
    assert len({round(score, 3) for each in scores(theirs) for score in each}) > 8  # Weights that tell texts apart.


def test_legacy_truncation_is_that_of_the_original_in_its_batches(folders: dict[str, Path], blender: Any) -> None:
    theirs = scores(blender(8).judge(SETS))
    assert scores(pairrm(folders["PairRM"], legacy_truncation=True).judge(SETS)) == [
        pytest.approx(each, abs=1e-5) for each in theirs
    ]
    plain = scores(pairrm(folders["PairRM"]).judge(SETS))
    assert plain[2] != pytest.approx(theirs[2], abs=1e-3)  # A long prompt in the batch leaves its candidates less room.
    assert plain[0] == pytest.approx(theirs[0], abs=1e-5)


def test_logits_are_those_of_the_published_class(folders: dict[str, Path], blender: Any) -> None:
    from llm_blender.blender.blender_utils import tokenize_pair
    from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

    model = DebertaV2PairRM.from_pretrained(folders["PairRM-hf"]).eval()
    _, tokenizer = load_pairrm(str(folders["PairRM-hf"]))
    ranker = pairrm(folders["PairRM-hf"])
    for each in SETS:
        texts = [list(part) for part in zip(*[(prompt_text(each.prompt), each.texts[0], each.texts[1])], strict=True)]
        batch = tokenize_pair(tokenizer, *texts, source_max_length=SOURCE_MAX, candidate_max_length=CANDIDATE_MAX)
        with torch.no_grad():
            wanted = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.item()
        [encoded] = ranker.text.encode([CandidateSet(each.prompt, each.texts[:2])])
        ids, (source, first, second) = ranker._row(encoded, 0, 1)
        assert ids == batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
        assert [ids[place] for place in (source, first, second)] == tokenizer.convert_tokens_to_ids(list(MARKERS[:3]))
        both = ranker.judge([CandidateSet(each.prompt, each.texts[:2])])[0]
        with torch.no_grad():
            swapped = tokenize_pair(
                tokenizer, texts[0], texts[2], texts[1], source_max_length=SOURCE_MAX, candidate_max_length=CANDIDATE_MAX
            )
            other = model(input_ids=swapped["input_ids"], attention_mask=swapped["attention_mask"]).logits.item()
        assert both[0].score == pytest.approx((wanted - other) / 2, abs=1e-5)
        assert both[0].disagreements == both[1].disagreements == int(wanted * other > 0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_score_does_not_depend_on_the_batch_or_on_other_sets(folders: dict[str, Path], batch_size: int) -> None:
    alone = [scores(pairrm(folders["PairRM"], batch_size=2).judge([each]))[0] for each in SETS]
    together = scores(pairrm(folders["PairRM"], batch_size=batch_size).judge(SETS))
    assert together == [pytest.approx(each, abs=1e-5) for each in alone]


def test_what_was_cut_is_told(folders: dict[str, Path]) -> None:
    verdicts = pairrm(folders["PairRM"]).judge(SETS)
    assert [[verdict.truncated for verdict in each] for each in verdicts] == [
        [False, False, False], [True, False, True], [True, True, True], [True, True, True],
    ]  # fmt: skip


def test_budgets_are_counted_with_markers_and_surroundings(folders: dict[str, Path]) -> None:
    ranker = pairrm(folders["PairRM"])
    [encoded] = ranker.text.encode([a_set(5, 200, 199, prompt=200)])
    assert len(encoded.source) == SOURCE_MAX and {len(each) for each in encoded.candidates} == {CANDIDATE_MAX}
    [short] = ranker.text.encode([a_set(5, 200, prompt=4)])
    assert len(short.candidates[0]) == CANDIDATE_MAX + (SOURCE_MAX - len(short.source)) // 2
    assert short.candidates[0][0] == ranker.text.tokenizer.cls_token_id
    assert short.candidates[0][-1] == ranker.text.tokenizer.sep_token_id


@pytest.mark.parametrize("text", [*MARKERS, "[CLS]", "[PAD]", "[SEP]", "a <|candidate2|> b", ""])
def test_no_special_token_comes_out_of_a_text(folders: dict[str, Path], text: str) -> None:
    """In the original a marker in a text is one more marker, and its batch fails."""
    ranker = pairrm(folders["PairRM"])
    [encoded] = ranker.text.encode([CandidateSet(user(text), [text, "bread"])])
    special = set(ranker.text.tokenizer.convert_tokens_to_ids([*MARKERS, "[CLS]", "[SEP]", "[PAD]"]))
    for ids in (encoded.source, *encoded.candidates):
        assert sum(token in special for token in ids) == 3
    found = scores(ranker.judge([CandidateSet(user(text), [text, "bread"])]))[0]
    assert found[0] == pytest.approx(-found[1])


def test_equal_texts_have_equal_scores_and_a_lone_one_has_none(folders: dict[str, Path]) -> None:
    ranker = pairrm(folders["PairRM"])
    prompt, (one, other) = SETS[0].prompt, SETS[0].texts[:2]
    [[alone], twice, plain] = ranker.judge(
        [CandidateSet(prompt, [one]), CandidateSet(prompt, [one, one, other]), CandidateSet(prompt, [one, other])]
    )
    assert alone == Verdict(0.0)
    assert twice[0] == twice[1]
    lead = 2 * plain[0].score
    assert [each.score for each in twice] == pytest.approx([lead / 3, lead / 3, -2 * lead / 3], abs=1e-6)
    assert ranker.judge([]) == []


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9])
def test_a_tournament_finds_best_and_worst_of_a_transitive_set(
    folders: dict[str, Path], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = pairrm(folders["PairRM"], tournament=True)
    sets = [a_set(seed, *([6] * count)) for seed in range(6)]
    asked: list[tuple[int, int, int]] = []

    def by_length(contests: Any, orders: Any) -> None:
        """In the place of the network: the longer text wins, which is transitive."""
        for number, one, other in orders:
            each = contests[number]
            if (one, other) not in each.better:
                asked.append((number, one, other))
                each.better[one, other] = float(strength[number][one] - strength[number][other])

    strength = [random.Random(seed).sample(range(count), count) for seed in range(6)]
    monkeypatch.setattr(ranker, "_compare", by_length)
    for own, verdicts in zip(strength, ranker.judge(sets), strict=True):
        found = [verdict.score for verdict in verdicts]
        if count > 1:
            assert (found.index(1.0), found.index(-1.0)) == (own.index(count - 1), own.index(0))
        assert sum(score not in (1.0, -1.0) for score in found) == max(count - 2, 0 if count > 1 else 1)
    assert len(asked) <= 6 * 2 * max(0, -(-3 * count // 2) - 2)


def test_a_tournament_asks_the_network_as_all_comparisons_do(folders: dict[str, Path]) -> None:
    sets = [a_set(seed, 5, 9, 7) for seed in range(20)]
    full, short = (pairrm(folders["PairRM"], tournament=choice).judge(sets) for choice in (False, True))
    same = 0
    for all_of, few in zip(full, short, strict=True):
        ordered = [verdict.score for verdict in all_of]
        found = [verdict.score for verdict in few]
        same += (found.index(1.0), found.index(-1.0)) == (ordered.index(max(ordered)), ordered.index(min(ordered)))
    assert same >= 14  # The rest is intransitive: random weights have no opinion of what is better.


def test_a_conversation_is_read_as_the_original_was_trained(folders: dict[str, Path]) -> None:
    turns: Messages = [*user("Hello"), *assistant("Hi"), *user("And now?")]
    assert prompt_text(turns).endswith("USER: Hello\nAssistant: Hi\nUSER: And now?\nAssistant: <Response 2>")
    assert prompt_text(user("Hello")) == "Hello"


def test_bf16_is_near(folders: dict[str, Path]) -> None:
    exact, rounded = (scores(pairrm(folders["PairRM"], bf16=choice).judge(SETS)) for choice in (False, True))
    assert rounded == [pytest.approx(each, abs=0.25) for each in exact] and rounded != exact


def test_what_is_no_pairrm_is_refused_in_a_line(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model.safetensors; name a PairRM"):
        load_pairrm(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"but pytorch_model.bin, a pickle .*; convert it to safetensors"):
        load_pairrm(str(tmp_path))
    odd = save_pairrm(tmp_path / "odd", ["a b c d"] * 4, vocab_size=40)
    config = (odd / "config.json").read_text()
    (odd / "config.json").write_text(config.replace("pairranker", "summareranker"))
    with pytest.raises(UserError, match="is a summareranker, not a pairranker"):
        load_pairrm(str(odd))
    (odd / "config.json").write_text(config)
    (odd / "model.safetensors").write_bytes((folders["PairRM"] / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"was made for another vocabulary|do not fit"):
        load_pairrm(str(odd))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda w: w.pop("head_layer.1.bias"), r"lacks 1 weight \(head_layer.1.bias\)"),
        (lambda w: w.update(more=torch.ones(1)), r"has 1 weight \(more\)"),
        (lambda w: w["head_layer.1.bias"].fill_(float("nan")), r"the weight head_layer.1.bias holds NaN"),
    ],
    ids=["missing", "unexpected", "nan"],
)
def test_weights_that_are_not_those_of_a_pairrm_are_refused_by_name(
    edit: Callable[[Any], Any], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["PairRM"], tmp_path / "edited")
    weights = load_file(tmp_path / "edited/model.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "edited/model.safetensors")
    with pytest.raises(UserError, match=words) as refused:
        load_pairrm(str(tmp_path / "edited"))
    assert "\n" not in str(refused.value)


def test_the_text_encoder_takes_all_sets_in_one_batch(folders: dict[str, Path]) -> None:
    _, tokenizer = load_pairrm(str(folders["PairRM"]))
    text = PairText(tokenizer, source_max_length=SOURCE_MAX, candidate_max_length=CANDIDATE_MAX, legacy_truncation=False)
    assert text.encode(SETS) == [text.encode([each])[0] for each in SETS]


def test_the_fast_reader_is_used(folders: dict[str, Path]) -> None:
    network = load_pairrm(str(folders["PairRM"]))[0]
    assert network.reader is None and network.settle(CPU, torch.float32).reader is not None


@pytest.mark.parametrize(
    ("more", "most"), [({"tokens_per_batch": 300}, 300), ({"batch_size": 1000}, 2048), ({"tokens_per_batch": 10**6}, 10**6)]
)
def test_batches_keep_to_their_tokens(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], most: int
) -> None:
    ranker = pairrm(folders["PairRM"], **more)
    shapes: list[torch.Size] = []
    forward = ranker.network.forward
    monkeypatch.setattr(ranker.network, "forward", lambda ids, *rest: (shapes.append(ids.shape), forward(ids, *rest))[1])
    ranker.judge([a_set(seed, *[10] * 4) for seed in range(12)])
    assert max(rows * tokens for rows, tokens in shapes) <= most
    assert (len(shapes) == 1) == (most == 10**6)


def test_disagreements_with_equal_texts_count_for_each(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`a` three times and `b`: whichever stands first is better, so each of the three comparisons is in doubt."""
    ranker = pairrm(folders["PairRM"])
    monkeypatch.setattr(ranker.network, "forward", lambda ids, *rest: torch.ones(len(ids)))
    [verdicts] = ranker.judge([CandidateSet(user("q"), ["lamp", "lamp", "lamp", "bread"])])
    assert [each.disagreements for each in verdicts] == [1, 1, 1, 3]


def test_a_folder_without_a_configuration_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((folders["PairRM"] / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"has no config.json; name a PairRM"):
        load_pairrm(str(tmp_path))
