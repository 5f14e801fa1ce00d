"""A reward model on a small encoder: it is trained on the very texts that it judges later, cut in the same way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages, OfflinePair, assistant
from handbook_ext.judging.rankers import RewardModel
from handbook_ext.policies.conversations import kept_end
from handbook_ext.recipes.settings import FitSettings
from handbook_ext.training.encoders import body_trainer, open_body
from handbook_ext.training.supervised import fit_arguments
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
    trainer = body_trainer(
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
