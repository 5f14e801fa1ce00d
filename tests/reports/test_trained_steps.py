"""In which step training met a pair: by the same plan that the trainer follows, whatever lengths its pairs have."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.objectives.batching import BatchPlan
from handbook_ext.reports.trained_steps import encoded_places, steps_of, training_of
from tests.reports.made_run import make_data, make_policy, make_store, offline, publish, select

ROWS = [offline(number) for number in range(7)]


def manifest(count: int, batch: int, *, epochs: float = 1.0, steps: int = 99, seed: int = 3) -> dict[str, Any]:
    train = {"global_batch_size": batch, "num_train_epochs": epochs}
    return {"settings": {"train": train}, "counts": {"in": count, "out": count}, "seed": seed, "steps": steps}


@pytest.mark.parametrize(
    "plan", [{"micro_batch_size": 2}, {"micro_batch_size": 4}, {"micro_batch_size": 1, "micro_batch_tokens": 40}]
)
def test_lengths_and_micro_batches_move_no_pair_to_another_step(plan: dict[str, int]) -> None:
    """The trainer's own plan over 21 pairs of many lengths, in steps of 8 of which the last has 5, over two epochs."""
    rng = random.Random(0)
    lengths = [rng.randrange(3, 30) for _ in range(21)]
    trainer = BatchPlan(lengths, global_batch_size=8, seed=3, epochs=2, **plan)
    met: dict[int, list[tuple[int, int]]] = {place: [] for place in range(21)}
    for epoch in (0, 1):
        for number, batch in enumerate(trainer.epoch(epoch)):
            for slot in batch:
                if slot.weight:
                    met[slot.index].append((epoch * trainer.steps + number // trainer.per_step + 1, epoch + 1))
    assert {place: steps_of(manifest(21, 8, epochs=2.0), place) for place in range(21)} == met
    # Half of the second epoch, of which training ended after its first step.
    assert all(
        steps_of(manifest(21, 8, epochs=1.5, steps=4), place) == [each for each in met[place] if each[0] <= 4] for place in met
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An iteration of seven pairs of the data's own labels."""
    run = tmp_path / "runs" / "mine-run"
    make_data(run, ROWS)
    select(run / "iter1", "dataset", {"rows": "../data/rows/train.jsonl"}, explore=False)
    return run / "iter1"


def test_a_pair_that_encoding_dropped_moves_those_behind_it(folder: Path) -> None:
    """The store has no log-prob of the third and the fifth: with five pairs left, the sixth line is the fourth place."""
    known = {name: -1.0 for row in ROWS for name in (row.chosen_id, row.rejected_id)}
    for row in (ROWS[2], ROWS[4]):
        del known[row.rejected_id]
    make_store(folder, {"hash of sft": known}, "sft", {"sft": "hash of sft"})
    policy = make_policy(folder, trained=5, steps=3)
    counts = {"counts": {"in": 7, "out": 5}, "start": "hash of sft"}
    assert encoded_places(folder, counts, [1, 3, 5, 6, 7]) == [0, None, None, 3, 4]
    assert encoded_places(folder, counts | {"start": "another"}, [1]) is None
    assert encoded_places(folder, {"counts": {"in": 7, "out": 7}}, [6]) == [5]
    told = training_of(folder, [3, 6])
    assert told[0] == "line 3 of pairs.jsonl: dropped when it was encoded, so nothing trained on it"
    (step, _), *_ = steps_of(manifest(5, 2, seed=1), 3)
    assert told[1].startswith(
        f"line 6 of pairs.jsonl: iter1/policy (policy None) trained on it, in step {step} of 3, among 2 pairs"
    )
    assert policy.is_dir()


def test_what_the_trainer_logged_goes_with_the_step_or_is_left_out(folder: Path) -> None:
    make_policy(folder, steps=2, batch=4)
    (told,) = training_of(folder, [1])
    (step, _), *_ = steps_of(manifest(7, 4, seed=1), 0)
    loss, margin = {1: (0.7, 0.1), 2: (0.5, 0.3)}[step]
    assert told.endswith(f"in step {step} of 2, among 4 pairs; logged at step {step}: loss {loss}, margin {margin}")
    (folder / "policy" / "trainer_state.json").unlink()
    assert training_of(folder, [1])[0].endswith("among 4 pairs")


def test_a_training_that_ended_early_or_read_other_pairs_is_told(folder: Path) -> None:
    assert training_of(folder, []) == []
    assert training_of(folder, [1]) == ["iter1 has not trained yet"]
    make_policy(folder, steps=0)
    assert training_of(folder, [1])[0].endswith("but training ended before its turn came")
    publish(folder / "other.jsonl", "select", rows=[{}])
    (folder / "pairs.manifest.json").write_text((folder / "other.manifest.json").read_text())
    assert training_of(folder, [1]) == ["iter1/policy was trained on other pairs than these; run make, which trains again"]


def test_dropped_pairs_without_a_store_leave_the_step_open(folder: Path) -> None:
    make_policy(folder, trained=6)
    (told,) = training_of(folder, [2])
    assert "unless it is one of those that encoding dropped ({'prompt too long': 1})" in told
