"""A person's own files: they work, and every mistake in them is one line that says where, what and what to do."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.data.offline import flipped, load_offline_data
from handbook_ext.recipes.settings import DataSettings
from tests.workspace import MICRO, Workspace

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def ultrafeedback(number: int) -> dict[str, Any]:
    """A row in the columns of HuggingFaceH4/ultrafeedback_binarized."""
    prompt, good, bad = f"count {number} please", " ".join(WORDS[: 2 + number % 5]), WORDS[number % 7]
    user = {"role": "user", "content": prompt}
    return {
        "prompt": prompt, "prompt_id": f"id{number}", "messages": [user, {"role": "assistant", "content": good}],
        "chosen": [user, {"role": "assistant", "content": good}], "score_chosen": 8.0,
        "rejected": [user, {"role": "assistant", "content": bad}], "score_rejected": 5.0,
    }  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load(tmp_path: Path, rows: list[Any], **more: Any) -> Any:
    train = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [ultrafeedback(99)])
    return load_offline_data(DataSettings(train=str(train), test=str(test), **more), seed=1)


def test_messages_plain_strings_and_multi_turn_prompts_come_out_alike(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [
        {"prompt": "hi", "chosen": "good", "rejected": "bad"},
        {"prompt": turns, "chosen": [{"role": "assistant", "content": "x"}], "rejected": [{"role": "assistant", "content": "y"}]},
        {"chosen": [*turns, {"role": "assistant", "content": "x"}], "rejected": [*turns, {"role": "assistant", "content": "y"}]},
    ]
    pairs = load(tmp_path, rows).train
    assert pairs[0].prompt == [{"role": "user", "content": "hi"}]
    assert pairs[1].prompt == pairs[2].prompt == turns
    assert len({pair.prompt_id for pair in pairs}) == 3


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    import datasets

    rows = [ultrafeedback(number) for number in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    write(tmp_path / "test.jsonl", rows[:1])
    data = DataSettings(train=str(tmp_path / "train.parquet"), test=str(tmp_path / "test.jsonl"))
    ours = [pair.model_dump(exclude={"source"}) for pair in load_offline_data(data, 1).train]
    assert ours == [pair.model_dump(exclude={"source"}) for pair in load(tmp_path, rows).train]


BAD = {
    "broken JSON": ('{"prompt": "a", ', "not valid JSON"),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "the row has no 'rejected'"),
    "empty completion": ({"prompt": "a", "chosen": "b", "rejected": " "}, "the rejected completion is empty"),
    "not an object": ("[1]", "a JSON object is needed"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "needs a 'prompt'"),
    "messages without content": ({"prompt": "a", "chosen": [{"role": "assistant"}], "rejected": "c"}, "list of messages"),
    "user last": ({"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}, "role 'assistant'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_17_is_named(name: str, tmp_path: Path) -> None:
    row, words = BAD[name]
    rows = [ultrafeedback(number) for number in range(16)]
    with pytest.raises(UserError) as error:
        load(tmp_path, [*rows, row, *rows])
    assert "train.jsonl:17: " in str(error.value)
    assert words in str(error.value)


def test_empty_completions_can_be_dropped_and_are_counted(tmp_path: Path) -> None:
    rows = [ultrafeedback(1), {"prompt": "a", "chosen": "b", "rejected": ""}]
    loaded = load(tmp_path, rows, empty_completions="drop")
    assert (len(loaded.train), loaded.dropped["empty rejected"], loaded.read) == (1, 1, 3)


def test_flips_are_seeded_counted_and_carry_their_scores(tmp_path: Path) -> None:
    pairs = load(tmp_path, [ultrafeedback(number) for number in range(50)]).train
    once, again = flipped(pairs, 0.4, 3), flipped(pairs, 0.4, 3)
    assert once == again
    assert sum(pair.swapped for pair in once) == 20
    for before, after in zip(pairs, once, strict=True):
        assert (after.score_chosen, after.score_rejected) == ((5.0, 8.0) if after.swapped else (8.0, 5.0))
        assert (after.chosen == before.rejected) == after.swapped


def own_recipe(workspace: Workspace, **replaced: str) -> str:
    rows = [ultrafeedback(number) for number in range(32)]
    write(workspace.folder / "recipes/mine/train.jsonl", rows)
    write(workspace.folder / "recipes/mine/test.jsonl", [ultrafeedback(number) for number in range(100, 106)])
    recipe = MICRO.replace("{train_rows: 48, test_rows: 8, sft_rows: 48,", "{train: train.jsonl, test: test.jsonl,")
    recipe += "rank: {fit: {global_batch_size: 8}}\n"  # In a single step of 32 pairs nothing would be learned.
    for old, new in replaced.values():
        assert old in recipe
        recipe = recipe.replace(old, new)
    workspace.write(recipe)
    return recipe


def test_own_files_run_the_whole_loop_with_a_reward_model_of_their_own(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    own_recipe(workspace)
    done = workspace.run("mine-micro")
    assert any("train_ranker" in command for command in done)
    rankings = (tmp_path / "runs/mine-micro/iter1/rankings.jsonl").read_text().splitlines()
    scores = {candidate["score"] for line in rankings for candidate in json.loads(line)["candidates"]}
    assert len(rankings) == 16
    assert len(scores) > 10
    assert "reward (by reward_model)" in (tmp_path / "runs/mine-micro/report/report.md").read_text()


def first_failure(workspace: Workspace) -> str:
    """Runs the loop until a stage fails; returns its one line."""
    for command in workspace.commands("mine-micro"):
        status, said = workspace.execute(command)
        if status:
            lines = [line for line in said.splitlines() if line.startswith("error:")]
            assert len(lines) == 1, said
            assert "Traceback" not in said
            return lines[0]
    raise AssertionError("nothing failed")


def test_a_prompt_longer_than_max_length_is_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    own_recipe(workspace, sft=("save_steps: 2,", "save_steps: 2, max_length: 8,"))
    said = first_failure(workspace)
    assert "train.jsonl:1: the prompt has" in said
    assert "max_length 8" in said
    assert not (tmp_path / "runs/mine-micro/sft/policy").exists()


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    workspace = Workspace(tmp_path)
    workspace.run("runs/mine-micro/sft/policy/manifest.json")
    bare = tmp_path / "bare"
    (tmp_path / "runs/mine-micro/sft/policy").rename(bare)
    (bare / "chat_template.jinja").unlink()
    assert not AutoTokenizer.from_pretrained(bare).chat_template
    base = (tmp_path / "recipes/tiny/base.yaml").read_text()
    start, end = base.index("model:"), base.index("data:")
    (tmp_path / "recipes/tiny/base.yaml").write_text(
        f"{base[:start]}model: {{name_or_path: {bare}, dtype: float32}}\n{base[end:]}"
    )
    said = first_failure(workspace)
    assert f"{bare}: the tokenizer has no chat template" in said
    assert "zephyr" in said


def test_two_processes_that_cannot_divide_the_batch_are_refused(tmp_path: Path) -> None:
    from handbook_ext.training.supervised import batch_arguments

    with pytest.raises(UserError, match="global_batch_size 9 cannot be divided by 2 processes"):
        batch_arguments(9, 1, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    small = tmp_path / "runs"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this machine does not let a test mount a tmpfs")
    try:
        said = first_failure(workspace)
        assert "the disk is full" in said
        assert not (small / "mine-micro/sft/policy").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)
