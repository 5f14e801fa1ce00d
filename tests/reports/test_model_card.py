"""The card of a policy: what its manifests and evaluations say, with a front matter that the hub's library takes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
from huggingface_hub import ModelCard

from handbook_ext.core.errors import UserError
from handbook_ext.reports import model_card
from handbook_ext.reports.card_facts import TrainedPolicy
from handbook_ext.reports.citations import BIBTEX, METHODS, methods_of
from handbook_ext.reports.hub import Result, is_hub_id
from handbook_ext.reports.hub import model_card as card_of
from handbook_ext.reports.model_card import render_card
from handbook_ext.reports.run_report import read_run, summarise


@pytest.fixture(scope="session")
def text(home: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return render_card(Path("runs/mine-selm/iter1"), "me/a-policy")


def test_the_front_matter_is_what_the_hub_reads(text: str) -> None:
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (data.license, data.library_name, data.pipeline_tag, data.model_name) == (
        "apache-2.0", "transformers", "text-generation", "mine-selm-iter1"
    )  # fmt: skip
    assert {"selm", "dpo"} <= set(data.tags) and data.base_model is None
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in data.eval_results}
    assert ("quiz", "single") in found and ("quiz", "lc_win_rate") not in found
    assert all(isinstance(value, float) for value in found.values())


def test_numbers_are_those_of_the_report_with_start_intervals_and_judge(text: str, made: Path) -> None:
    summary = summarise([[read_run(made, ["iter1"])]], title="t", resamples=100, confidence=0.95)
    start, policy = (each["greedy"] for each in summary["recipes"][0]["policies"])
    cells = [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in (start["reward"], policy["reward"])]
    assert f"| greedy | true reward | {cells[0]} | {cells[1]} |" in text
    won = policy["vs_start"]["win_rate"]
    assert (
        f"| greedy | win rate against the start, % | - | {100 * won.value:.1f} [{100 * won.low:.1f}, {100 * won.high:.1f}] |"
        in text
    )
    assert "8 of them, judged by oracle, greedy at 0, sampled at 0.7." in text
    single = json.loads((made / "iter1/quiz/eval.json").read_text())["measures"]["single"]
    cell = f"{single['value']:.2f} ± {single['standard_error']:.2f} |"
    assert re.search(rf"\| quiz \| single, 1-10 \| a-judge \| 8 \| [\d.]+ ± [\d.]+ \| {re.escape(cell)}", text)


def test_it_says_how_the_policy_was_made_and_what_was_not_run(text: str, made: Path) -> None:
    manifest = json.loads((made / "iter1/policy/manifest.json").read_text())
    for line in (
        "| method | SELM + DPO |", "| row of a paper | SELM table 1, SELM Iter 1 to 3 |",
        "| base model | none: built from random weights |",
        "| `train.beta` | `0.2` |", "| `rank.ranker` | `oracle` |", "| pairs of this iteration | 3 |",
        "| source | tiny\\_world, which this project makes; seed 1 |",
        f"at commit {manifest['code']['commit']}", f"torch {manifest['packages']['torch']}",
        "- quiz: 1 of 8 prompts stand in the training data too.", "- Not run: quiz lc\\_win\\_rate (df\\_gamed.csv is not here).",
        'from_pretrained("me/a-policy")', BIBTEX["selm"], BIBTEX["dpo"], f"commit {manifest['code']['commit']}",
    ):  # fmt: skip
        assert line in text, line
    assert text.index("`train.loss_type`") < text.index("`select.rule`") < text.index("loss_type: sigmoid")


def test_no_path_no_host_and_no_secret_is_in_it(text: str, made: Path) -> None:
    assert not re.search(r"(?<![\w.:/<])/(tmp|home|root|usr)/", text)
    assert "node17" not in text and str(made.resolve()) not in text


def test_a_policy_that_was_fine_tuned_alone_and_one_that_was_not_evaluated_have_cards(made: Path, tmp_path: Path) -> None:
    text = render_card(made / "sft")
    assert "| method | supervised fine-tuning |" in text and "row of a paper" not in text and "from_pretrained" not in text
    shutil.copytree(made, tmp_path / "mine-selm")
    (tmp_path / "mine-selm/iter1/eval.json").unlink()
    shutil.rmtree(tmp_path / "mine-selm/iter1/quiz")
    text = render_card(tmp_path / "mine-selm/iter1")
    assert "The loop's own evaluation was not run on it." in text
    shutil.rmtree(tmp_path / "mine-selm/iter1/policy")
    with pytest.raises(UserError, match=r"policy is not finished: manifest\.json is missing"):
        render_card(tmp_path / "mine-selm/iter1")


def changed(made: Path, folder: Path, **model: Any) -> TrainedPolicy:
    """The policy with another base in its manifest."""
    shutil.copytree(made, folder / "mine-selm")
    path = folder / "mine-selm/iter1/policy/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["model"] |= model
    path.write_text(json.dumps(manifest))
    return TrainedPolicy(folder / "mine-selm/iter1")


BASES = [
    ("EleutherAI/pythia-2.8b", "apache-2.0", "EleutherAI/pythia-2.8b", "apache-2.0."),
    ("some/base", "other", "some/base", "See base: the terms of some/base hold"),
    ("/home/me/checkpoints/secret-base", "other", None, "See base: the terms of what it was trained from hold"),
]


@pytest.mark.parametrize(("name", "licence", "base", "words"), BASES)
def test_the_licence_is_that_of_the_base_where_it_is_known(
    made: Path, tmp_path: Path, name: str, licence: str, base: str | None, words: str
) -> None:
    policy = changed(made, tmp_path, name_or_path=name, architecture=None)
    text = render_card(policy.folder)
    data = ModelCard(text).data
    assert (data.license, data.base_model) == (licence, base)
    assert words in text and "/home/me" not in text
    assert data.get("license_name") == (None if licence != "other" else "see-base")


def test_a_field_that_the_template_lacks_is_an_error(monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    monkeypatch.setattr(model_card, "_judging", lambda evaluated: {})
    with pytest.raises(jinja2.UndefinedError, match=r"prompts|judged_by|confidence"):
        render_card(made / "iter1")


def test_results_that_the_hub_cannot_place_are_an_error() -> None:
    with pytest.raises(ValueError, match="requires `model_name` to be set"):
        card_of("text", [Result("a", "b", "c", 1.0)], license="mit")


TRAIN = {"alpha": 0.0, "loss_type": "sigmoid", "label_smoothing": 0.0}
CASES = [
    ({"alpha": 0.1}, {"rule": "best_and_worst"}, {"candidates": "all", "ranker": "pairrm"}, ["selm", "dpo"]),
    ({}, {"rule": "sera"}, None, ["sera", "dpo"]),
    ({"loss_type": "ipo"}, {"rule": "sera"}, None, ["sera", "ipo"]),
    ({}, {"rule": "gold_over_sample"}, None, ["spin", "dpo"]),
    ({}, {"rule": "curriculum"}, None, ["curry", "dpo"]),
    ({}, {"rule": "best_and_worst"}, {"candidates": "samples", "ranker": "self"}, ["srlm", "dpo"]),
    ({}, {"rule": "best_and_worst"}, {"candidates": "samples", "ranker": "reward_model"}, ["oaif", "dpo"]),
    ({"label_smoothing": 0.1}, {"rule": "dataset"}, None, ["cdpo"]),
    ({"loss_type": "robust", "label_smoothing": 0.1}, {"rule": "dataset"}, None, ["rdpo"]),
    ({"loss_type": "orpo"}, {"rule": "dataset"}, None, ["orpo"]),
    ({"loss_type": "simpo"}, {"rule": "dataset"}, None, ["simpo"]),
    ({"loss_type": "hinge"}, {"rule": "dataset"}, None, ["slic"]),
]


@pytest.mark.parametrize(("train", "select", "rank", "wanted"), CASES)
def test_the_methods_of_an_iteration_follow_from_its_settings(train: Any, select: Any, rank: Any, wanted: list[str]) -> None:
    assert methods_of(TRAIN | train, select, rank) == wanted
    assert all(each in METHODS and BIBTEX[each].startswith("@") for each in wanted)


def test_every_loss_and_method_has_its_paper() -> None:
    from handbook_ext.objectives.losses import LOSSES

    assert METHODS.keys() == BIBTEX.keys()
    for name in LOSSES:
        assert methods_of(TRAIN | {"loss_type": name}, {"rule": "dataset"}, None)[-1] in BIBTEX
    keys = [re.match(r"@\w+\{(\w+),", each)[1] for each in BIBTEX.values()]
    assert len(set(keys)) == len(keys)


def test_a_name_of_the_hub_has_an_owner_and_is_no_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("a/b") and not is_hub_id("a") and not is_hub_id("/a/b") and not is_hub_id(None) and not is_hub_id("a/b/c")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not is_hub_id("a/b")
