"""Checkpoints that are not what their configuration says: an error that names the weights, never random ones in their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.judging.reward_model import RewardModel
from handbook_ext.policies.loading import _named, first_not_finite, load_whole
from handbook_ext.policies.models import load_policy
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings import ModelSettings
from handbook_ext.training.reward_models import open_body, policy_body

if TYPE_CHECKING:
    from tests.conftest import BuildPolicy

Edit = Callable[[dict[str, Tensor]], Any]


def edited(folder: Path, edit: Edit, name: str = "model.safetensors") -> None:
    """Rewrites the weights of a checkpoint."""
    weights = load_file(folder / name)
    edit(weights)
    save_file(weights, folder / name, {"format": "pt"})


def configured(folder: Path, **values: Any) -> None:
    """Rewrites values of a checkpoint's configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def put(name: str, index: int, value: float) -> Edit:
    """Returns an edit that puts a value into a weight."""

    def edit(weights: dict[str, Tensor]) -> None:
        weights[name].view(-1)[index] = value

    return edit


@pytest.fixture
def start(build: BuildPolicy, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A policy in a folder."""
    build().save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def loaded(folder: Path) -> Any:
    return load_policy(str(folder), ModelSettings(name_or_path=str(folder), dtype="float32"), trained_here=False)


def told(folder: Path, capfd: pytest.CaptureFixture[str], load: Callable[[Path], Any] = loaded) -> str:
    """The one line that refuses a checkpoint; the library's own table is not printed beside it."""
    with pytest.raises(UserError) as refused:
        load(folder)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
    line = str(refused.value)
    assert "\n" not in line and str(folder) in line
    return line


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda w: w.pop(NORM), f"lacks 1 weight ({NORM}), which would stay random; restore"),
        (lambda w: [w.pop(name) for name in list(w) if "layers.1" in name], "lacks 9 weights (model.layers.1.input_layernorm"),
        (lambda w: w.update({"model.layers.2.mlp.extra": torch.ones(2)}), "has 1 weight (model.layers.2.mlp.extra), which"),
        (lambda w: w.update({NORM: torch.ones(7)}), f"has 1 weight ({NORM} ([7] instead of [32])): another shape"),
    ],
    ids=["missing", "missing_layer", "unexpected", "shape"],
)
def test_a_policy_with_other_weights_than_its_configuration_says_is_refused(
    edit: Edit, words: str, start: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edited(start, edit)
    assert words in told(start, capfd)


def test_an_embedding_of_another_vocabulary_is_refused(start: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configured(start, vocab_size=400)
    assert "model.embed_tokens.weight ([320, 32] instead of [400, 32])" in told(start, capfd)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    value: float, word: str, start: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edited(start, put("model.layers.1.mlp.up_proj.weight", 5, value))
    assert f"the weight model.layers.1.mlp.up_proj.weight holds {word}" in told(start, capfd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_weights_are_finite(dtype: torch.dtype) -> None:
    most = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
    assert first_not_finite([("a", most), ("b", -most), ("none", most[:0]), ("ids", torch.ones(3, dtype=torch.long))]) is None


def test_tied_embeddings_and_buffers_that_rightly_lack_are_fine(build: BuildPolicy, tmp_path: Path) -> None:
    build("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied/model.safetensors")
    loaded(tmp_path / "tied")
    build("gpt_neox").save_pretrained(tmp_path / "pythia")
    # Buffers of older versions of the library, as Pythia's checkpoints have them.
    edited(tmp_path / "pythia", lambda w: w.update({"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4)}))
    edited(tmp_path / "pythia", lambda w: w.update({"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}))
    loaded(tmp_path / "pythia")


def body_of(folder: Path) -> Any:
    return policy_body(PolicySource(str(folder), ModelSettings(name_or_path=str(folder)), "0" * 64, None), seed=1)


def judge(folder: Path) -> RewardModel:
    return RewardModel(str(folder), device=torch.device("cpu"), batch_size=2, max_length=64)


def test_a_reward_model_gets_a_new_head_on_a_policys_body_and_nothing_else_is_new(
    start: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for load in (body_of, lambda folder: open_body(str(folder), max_length=64, seed=1)):
        assert load(start)[0].score.weight.shape == (1, 32)
        assert "LOAD REPORT" not in "".join(capfd.readouterr())
    edited(start, lambda w: w.pop(NORM))
    for load in (body_of, lambda folder: open_body(str(folder), max_length=64, seed=1)):
        assert f"lacks 1 weight ({NORM})" in told(start, capfd, load)


def test_an_encoder_may_lack_its_pooler_and_have_the_head_of_its_pretraining(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForMaskedLM

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), max_position_embeddings=64, **size)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")

    def opened(folder: Path) -> Any:
        return open_body(str(folder), max_length=64, seed=1)

    opened(tmp_path / "bert")
    configured(tmp_path / "bert", num_hidden_layers=1)
    assert "has 16 weights (bert.encoder.layer.1.attention" in told(tmp_path / "bert", capfd, opened)


def test_a_ranker_without_its_head_is_refused_instead_of_judging_at_random(
    start: Path, tokenizer: PreTrainedTokenizerFast, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "lacks 1 weight (score.weight), which would stay random" in told(start, capfd, judge)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    model.save_pretrained(start.with_name("ranker"))
    tokenizer.save_pretrained(start.with_name("ranker"))
    judge(start.with_name("ranker"))
    edited(start.with_name("ranker"), put("score.weight", 3, float("nan")))
    assert "the weight score.weight holds NaN" in told(start.with_name("ranker"), capfd, judge)


def test_damaged_weights_are_called_damaged(start: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = (start / "model.safetensors").read_bytes()
    (start / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "its weights are damaged" in told(start, capfd)


def test_a_weight_with_both_infinities_holds_infinity() -> None:
    """Their sum is NaN, and the weight holds none."""
    both = torch.tensor([1.0, float("inf"), -float("inf")])
    assert first_not_finite([("w", both)]) == "the weight w holds infinity"
    assert first_not_finite([("w", torch.tensor([float("nan"), float("inf")]))]) == "the weight w holds NaN"


def test_a_line_names_three_weights_and_says_where_there_are_more() -> None:
    assert _named(["c", "b", "a"]) == "3 weights (a, b, c)"
    assert _named(["d", "c", "b", "a"]) == "4 weights (a, b, c, ...)"


@pytest.mark.parametrize(
    ("message", "kind"), [("size mismatch for a.weight: [2] and [3]", UserError), ("out of memory", RuntimeError)]
)
def test_shapes_that_the_library_refuses_itself_are_one_line_and_other_failures_are_not(
    message: str, kind: type[Exception]
) -> None:
    """As under ZeRO-3."""

    class Refusing:
        @staticmethod
        def from_pretrained(source: str, **options: Any) -> None:
            raise RuntimeError(f"Error(s) in loading:\n\t{message}\n")

    with pytest.raises(kind) as refused:
        load_whole(Refusing, "here")
    assert type(refused.value) is kind
    if kind is UserError:
        assert str(refused.value).startswith(f"here: its weights do not fit its config.json ({message}); restore the file")
