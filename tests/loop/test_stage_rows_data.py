"""Rows in and out of the stages before the loop: data from files, supervised fine-tuning, a reward model of the run's own."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.loop.plain import Json, id_of, logged_steps, manifest, question, request_seed, rows, sha256, side
from tests.workspace import MICRO, SELM, Workspace, changed

Copy = Callable[[Workspace, str], Workspace]

# Nine usable rows: the third ties, the fourth has no answer, the last two repeat a prompt. One held-out prompt is trained on.
PAIRS = [
    {"prompt": f"say {n}", "chosen": f"yes {n}", "rejected": "no", "score_chosen": 2.0, "score_rejected": 1.0} for n in range(11)
]
PAIRS[2] |= {"score_rejected": 2.0}
PAIRS[3] |= {"chosen": ""}
PAIRS[10] |= {"prompt": "say 9"}
HELD_OUT = [{"prompt": f"say {n}", "chosen": "yes", "rejected": "no"} for n in (9, 20, 21, 22, 23)]


def test_data_writes_the_usable_rows_of_the_files_and_counts_the_others(tmp_path: Path) -> None:
    recipe = changed(
        MICRO.replace("{train_rows: 48, test_rows: 8, sft_rows: 48,", "{sft_rows: 4, test_rows: 4,"),
        data="train: train.jsonl, test: test.jsonl, flip_rate: 0.34, empty_completions: drop",
    )
    workspace = Workspace(tmp_path / "files", recipe)
    for name, raw in (("train", PAIRS), ("test", HELD_OUT)):
        (workspace.folder / f"recipes/mine/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
    status, said = workspace.execute(workspace.commands("mine-micro")[0])
    assert status == 0, said
    out = workspace.folder / "runs/mine-micro/data/rows"
    train, held_out, demonstrations = (rows(out / f"{name}.jsonl") for name in ("train", "test", "sft"))
    usable = [row for row in PAIRS if row["score_chosen"] != row["score_rejected"] and row["chosen"]]
    assert [question(row) for row in train] == [row["prompt"] for row in usable]
    for row, raw in zip(train, usable, strict=True):
        sides = ("rejected", "chosen") if row["swapped"] else ("chosen", "rejected")
        assert [side(row, name) for name in sides] == [raw["chosen"], raw["rejected"]]
        assert [row[f"score_{name}"] for name in sides] == [2.0, 1.0]
        assert [row[f"{name}_id"] for name in sides] == [id_of(row, raw[name]) for name in ("chosen", "rejected")]
    assert len({row["prompt_id"] for row in train}) == len(usable) == 9
    places = [(number, len(PAIRS)) for number, row in enumerate(PAIRS) if row in usable]
    assert [(row["raw_row"], row["raw_rows"]) for row in train] == places
    assert [(row["raw_row"], row["raw_rows"]) for row in demonstrations] == places[:4]
    assert [question(row) for row in held_out] == [row["prompt"] for row in HELD_OUT[:4]]
    assert not any(row["swapped"] for row in held_out)
    assert [question(row) for row in demonstrations] == [row["prompt"] for row in usable[:4]]
    assert [row["completion"][0]["content"] for row in demonstrations] == [row["chosen"] for row in usable[:4]]
    about = manifest(out)
    assert about["counts"]["in"] == len(PAIRS) + 4
    assert about["counts"]["out"] == 9 + 4
    assert sorted(about["counts"]["dropped"].values()) == [1, 1]
    assert about["rows"] == {"sft": 4, "train": 9, "test": 4}
    assert about["swapped"] == [row["prompt_id"] for row in train if row["swapped"]]
    flipped = random.Random(request_seed("flip", 1)).sample(range(9), round(0.34 * 9))
    assert about["swapped"] == [train[index]["prompt_id"] for index in sorted(flipped)]
    assert about["unused"] == 1  # Two parts of five raw rows, of which the first has lost two.
    assert about["held_out_prompts_in_train"] == 1 and "note: 1 held-out prompts are also training prompts" in said
    assert "2 of 15 rows were dropped" in said
    files = {f"recipes/mine/{name}.jsonl": sha256(workspace.folder / f"recipes/mine/{name}.jsonl") for name in ("train", "test")}
    assert {str(name).split("micro/")[-1]: sha for name, sha in about["external"].items()} == files


def test_sft_takes_a_step_per_batch_of_the_demonstrations(selm: Workspace) -> None:
    run = selm.folder / "runs/mine-micro"
    demonstrations, about = rows(run / "data/rows/sft.jsonl"), manifest(run / "sft/policy")
    assert about["counts"] == {"in": 48, "out": 48, "dropped": {"prompt too long": 0}}
    log = logged_steps(run / "sft")
    assert [row["step"] for row in log] == list(range(1, len(demonstrations) // 8 + 1))
    # The peak is the SFT section's own: no factor of `train` lowers it. A step of warm-up, then half a cosine.
    rates = [0.0, *(2e-3 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5))]
    assert [row["learning_rate"] for row in log] == pytest.approx(rates)
    assert log[-1]["loss"] < log[0]["loss"]
    # All words of the demonstrations are in the vocabulary that the stage made of them.
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/policy")
    for row in demonstrations:
        assert tokenizer.decode(tokenizer(side(row, "completion"))["input_ids"]) == side(row, "completion")


LONGEST = 40  # tokens of prompt and answer, of which the reward model reads the last


def test_the_runs_own_reward_model_learns_from_short_pairs_and_judges_the_samples(selm: Workspace, copy_of: Copy) -> None:
    recipe = SELM + f"rank: {{ranker: reward_model, max_length: {LONGEST}, fit: {{global_batch_size: 8, learning_rate: 1e-3}}}}\n"
    workspace = copy_of(selm, recipe)
    commands = [each for each in workspace.commands("mine-micro-iter1") if "train_ranker" in each or "rank_completions" in each]
    assert len(commands) == 2
    for each in commands:
        status, said = workspace.execute(each)
        assert status == 0, said
    run = workspace.folder / "runs/mine-micro"
    tokenizer = AutoTokenizer.from_pretrained(run / "ranker/model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "ranker/model", dtype=torch.float32).eval()

    def ids(row: Json, text: str) -> list[int]:
        return list(
            tokenizer(f"<|user|>\n{question(row)}</s>\n<|assistant|>\n{text}</s>\n", add_special_tokens=False)["input_ids"]
        )

    pairs = rows(run / "data/rows/train.jsonl")
    assert any(len(ids(row, side(row, "chosen"))) > LONGEST for row in pairs)  # Cut to its end, as in judging, and not dropped.
    assert manifest(run / "ranker/model")["counts"] == {"in": len(pairs), "out": len(pairs), "dropped": {}}
    ranked = rows(run / "iter1/rankings.jsonl")
    for row in ranked[::4]:
        for each in row["candidates"]:
            read = ids(row, each["text"])
            with torch.no_grad():
                score = float(model(input_ids=torch.tensor([read[-LONGEST:]])).logits[0, 0])
            assert each["score"] == pytest.approx(score, abs=1e-4)
            assert each["truncated"] == (len(read) > LONGEST)
    about = manifest(run / "iter1/rankings.jsonl")
    assert about["inputs"]["../ranker/model"] == manifest(run / "ranker/model")["sha256"]
    assert about["truncated"] == sum(each["truncated"] for row in ranked for each in row["candidates"])
