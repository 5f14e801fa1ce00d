"""What SFT feeds to TRL's trainer."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from handbook_ext.core.records import Demonstration, assistant
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.recipes.settings import SFTSettings
from handbook_ext.training.sft_examples import examples_once, sft_examples
from handbook_ext.training.supervised import optimizer_arguments, sft_trainer
from tests.conftest import BuildPolicy


def padding(folder: Path, tokenizer: PreTrainedTokenizerFast, build: BuildPolicy, *, group: bool) -> tuple[float, int]:
    """Returns the share of padding that attention computes in an epoch's batches, and how many examples they hold."""
    rows = [
        Demonstration(prompt_id=str(n), prompt=[{"role": "user", "content": "a"}], completion=assistant("b " * (n * 37 % 120)))
        for n in range(64)
    ]
    settings = SFTSettings(
        learning_rate=1e-3, global_batch_size=4, per_device_train_batch_size=4, max_length=200, group_by_length=group
    )
    arguments = optimizer_arguments(settings, folder, 1, 3)
    encoder = ChatEncoder(tokenizer, 200, long_prompts="cut")
    examples, counts = examples_once(folder, lambda: sft_examples(rows, encoder, settings))
    trainer = sft_trainer(build(), tokenizer, examples, settings, arguments=arguments, callbacks=[])
    lengths = [torch.bincount(batch["rows"].pair[0]) for batch in trainer.get_train_dataloader()]
    assert counts == {"rows": 64, "dropped": 0, "cut": 0, "answers_left_out": 0}
    padded = sum(len(each) * int(each.max()) for each in lengths)
    return 1 - sum(int(each.sum()) for each in lengths) / padded, sum(map(len, lengths))


def test_examples_of_similar_length_share_a_batch_where_a_recipe_says_so(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, build: BuildPolicy
) -> None:
    (random, examples), (grouped, as_many) = (padding(tmp_path, tokenizer, build, group=group) for group in (False, True))
    assert examples == as_many == 64
    assert 2 * grouped < random
