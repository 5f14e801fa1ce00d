"""A reward model, on a small encoder or a policy: it is trained on the very tokens that it judges later, cut in the same way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, OfflinePair, assistant, user
from handbook_ext.judging.reward_model import RewardModel, judged_ids
from handbook_ext.policies.conversations import kept_end
from handbook_ext.policies.source import PolicySource
from handbook_ext.policies.text_tokens import TextTokens
from handbook_ext.recipes.settings import FitSettings, ModelSettings
from handbook_ext.training.reward_models import open_body, policy_body, reward_trainer
from handbook_ext.training.supervised import fit_arguments
from tests.conftest import BuildPolicy
from tests.small_encoder import POSITIONS, save_encoder

PROMPT: Messages = [{"role": "user", "content": "a b"}]
LONG = " ".join("cdefghij" * 4)
PAIRS = [OfflinePair.of(f"p{n}", PROMPT, assistant(f"c {'d ' * n}"), assistant(LONG)) for n in range(4)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def test_a_conversation_is_roles_and_texts_behind_the_class_token(encoder: str) -> None:
    _, tokenizer = open_body(encoder, max_length=32, seed=1)
    text = tokenizer.apply_chat_template([*PROMPT, *assistant("c")], tokenize=False)
    assert text == "[CLS]user: a b[SEP]assistant: c[SEP]"


def test_what_is_cut_keeps_the_class_token_and_the_end(encoder: str) -> None:
    _, tokenizer = open_body(encoder, max_length=32, seed=1)
    first = tokenizer.cls_token_id
    assert kept_end(tokenizer, [first, 5, 6, 7, 8], 3) == [first, 7, 8]
    assert kept_end(tokenizer, [first, 5, 6], 3) == [first, 5, 6]
    assert kept_end(tokenizer, [4, 5, 6, 7], 3) == [5, 6, 7]
    tokenizer.cls_token = None
    assert kept_end(tokenizer, [first, 5, 6, 7], 3) == [5, 6, 7]


def test_training_drops_nothing_and_the_saved_model_judges_by_the_same_ids(encoder: str, tmp_path: Path) -> None:
    model, tokenizer = open_body(encoder, max_length=16, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit = FitSettings(global_batch_size=2, per_device_train_batch_size=2)
    trainer = reward_trainer(
        model, tokenizer, PAIRS, max_length=16, arguments=fit_arguments(fit, tmp_path / "c", 1, 1), callbacks=[]
    )
    rows = trainer.train_dataset
    assert [len(row["rejected_ids"]) for row in rows] == [16] * 4
    assert all(row["rejected_ids"][0] == tokenizer.cls_token_id for row in rows)
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    ranker = RewardModel(str(tmp_path / "saved"), device=torch.device("cpu"), batch_size=2, max_length=16)
    verdicts = ranker.score([(PROMPT, LONG), (PROMPT, "c")])
    wanted = model.eval()(input_ids=torch.tensor([rows[0]["rejected_ids"]])).logits.item()
    assert verdicts[0].score == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert [verdict.truncated for verdict in verdicts] == [True, False]


def test_a_policy_is_trained_on_the_tokens_that_it_judges(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, build: BuildPolicy
) -> None:
    """TRL would tokenise a special token out of a text, and drop what is too long."""
    build().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    source = PolicySource(str(tmp_path / "policy"), ModelSettings(name_or_path=str(tmp_path / "policy")), "0" * 64, None)
    model, own = policy_body(source, seed=1)
    injected = OfflinePair.of("p", user("a</s> b"), assistant("c"), assistant("d " * 40))
    trainer = reward_trainer(
        model, own, [injected], max_length=24, arguments=fit_arguments(FitSettings(), tmp_path / "c", 1, 1), callbacks=[]
    )
    [row] = trainer.train_dataset
    whole = [
        judged_ids(TextTokens(own), [(injected.prompt, side.text)])[0]
        for side in (injected.chosen_answer, injected.rejected_answer)
    ]
    assert len(whole[1]) > 24
    assert [row["chosen_ids"], row["rejected_ids"]] == [whole[0], whole[1][-24:]]
    assert whole[0].count(own.eos_token_id) == 2  # Of the two turns, none of the text.


def test_no_more_tokens_are_asked_for_than_the_tokenizer_has(encoder: str, tmp_path: Path) -> None:
    """RoBERTa has two positions more than it can take tokens."""
    folder = shutil.copytree(encoder, tmp_path / "roberta")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": POSITIONS - 2}))
    open_body(str(folder), max_length=POSITIONS - 2, seed=1)
    with pytest.raises(UserError, match=rf"it has {POSITIONS - 2} positions"):
        open_body(str(folder), max_length=POSITIONS - 1, seed=1)


def test_the_head_depends_on_the_seed_and_dropout_is_off(encoder: str) -> None:
    heads = [open_body(encoder, max_length=32, seed=seed)[0].classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert open_body(encoder, max_length=32, seed=1)[0].config.hidden_dropout_prob == 0


def test_more_tokens_than_positions_are_refused(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"it has {POSITIONS} positions, but rank.max_length .* is {POSITIONS + 1}"):
        open_body(encoder, max_length=POSITIONS + 1, seed=1)
    with pytest.raises(UserError, match="cannot be loaded"):
        open_body(str(tmp_path), max_length=8, seed=1)


def test_bf16_of_the_fit_reaches_training(tmp_path: Path) -> None:
    for bf16 in (True, False):
        assert fit_arguments(FitSettings(bf16=bf16), tmp_path, 1, 1)["bf16"] is bf16
