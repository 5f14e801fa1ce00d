"""Checkpoints that bring code: nothing of it runs, unless the recipe says `trust_remote_code`."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.judging.pairrm_model import load_pairrm
from handbook_ext.judging.reward_model import RewardModel
from handbook_ext.policies.models import load_policy, load_tokenizer
from handbook_ext.recipes.settings import ModelSettings
from handbook_ext.training.reward_models import open_body
from tests.training.test_trainer import trainer_of

if TYPE_CHECKING:
    from tests.conftest import Arguments, BuildPolicy

CODE = "import pathlib\npathlib.Path({ran!r}).touch()\n"


def settings_of(folder: Path, *, trusted: bool = False) -> ModelSettings:
    return ModelSettings(name_or_path=str(folder), dtype="float32", trust_remote_code=trusted)


def policy(folder: Path) -> Any:
    return load_policy(str(folder), settings_of(folder), trained_here=False)


LOADERS: dict[str, Callable[[Path], Any]] = {
    "policy": policy,
    "tokenizer": lambda folder: load_tokenizer(str(folder), settings_of(folder), trained_here=False),
    "body": lambda folder: open_body(str(folder), max_length=64, seed=1),
    "ranker": lambda folder: RewardModel(str(folder), device=torch.device("cpu"), batch_size=1, max_length=64),
    "pairrm": lambda folder: load_pairrm(str(folder)),
}


class Attack:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.ran),)


@pytest.fixture
def start(build: BuildPolicy, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A policy in a folder."""
    build().save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.parametrize("loader", sorted(LOADERS.keys() - {"tokenizer"}))
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_is_refused_and_not_run(form: str, loader: str, start: Path, tmp_path: Path) -> None:
    ran, weights = tmp_path / "ran", start / "pytorch_model.bin"
    (start / "model.safetensors").unlink()
    if form == "torch":
        torch.save({"model.norm.weight": Attack(ran)}, weights)
    else:
        weights.write_bytes(pickle.dumps(Attack(ran)))
    with pytest.raises(UserError, match="pickle") as refused:
        LOADERS[loader](start)
    assert not ran.exists() and "\n" not in str(refused.value)


@pytest.mark.parametrize("loader", sorted(LOADERS))
def test_code_of_a_checkpoint_does_not_run(loader: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # Nor is anyone asked.
    (start / "evil.py").write_text(CODE.format(ran=str(ran)))
    maps = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModelForSequenceClassification": "evil.Model"}
    for name, more in (("config.json", {"model_type": "evil", "auto_map": maps}), ("tokenizer_config.json", {
        "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    })):  # fmt: skip
        values = json.loads((start / name).read_text())
        (start / name).write_text(json.dumps(values | more))
    with pytest.raises(UserError) as refused:
        LOADERS[loader](start)
    assert not ran.exists() and "\n" not in str(refused.value)


def test_code_runs_where_the_recipe_says_so(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above would see it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (start / "evil.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    values = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(values | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}))
    with pytest.raises((UserError, AttributeError)):  # It has no such class.
        load_policy(str(start), settings_of(start, trusted=True), trained_here=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_among_the_states_of_a_training_is_not_run(
    name: str, build: BuildPolicy, arguments: Arguments, ready: Any, saved: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(saved, tmp_path / "checkpoint-1")
    torch.save({"state": Attack(tmp_path / "ran")}, checkpoint / name)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        trainer_of(build(), ready, arguments(max_steps=2)).train(resume_from_checkpoint=str(checkpoint))
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def ready(tokenizer: PreTrainedTokenizerFast, make_pairs: Callable[[int], Any]) -> Any:
    """Pairs with reference log-probs, made up."""
    from handbook_ext.policies.chat import ChatEncoder
    from handbook_ext.policies.encoding import encode_pairs

    encoded = encode_pairs(make_pairs(19), ChatEncoder(tokenizer, max_length=56, max_prompt_length=40), explore=True)
    return encoded.with_reference({name: -20.0 for names in encoded.ids for name in names}, "ours")


@pytest.fixture
def saved(build: BuildPolicy, arguments: Arguments, ready: Any, tmp_path: Path) -> Path:
    """A checkpoint of a training."""
    args = arguments(max_steps=1, save_strategy="steps", save_steps=1)
    trainer_of(build(), ready, args).train()
    return Path(str(args.output_dir)) / "checkpoint-1"
