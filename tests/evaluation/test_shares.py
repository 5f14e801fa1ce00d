"""Held-out work in shares: each process does its own, all have everything, and an endpoint is asked by the first alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from handbook_ext.core.records import Messages, OfflinePair, assistant, user
from handbook_ext.evaluation import decoding
from handbook_ext.evaluation.decoding import HeldOutJudge
from handbook_ext.judging.ranker import Pointwise, Verdict
from handbook_ext.policies.launch import Launch

ROWS = [OfflinePair.of(f"p{n}", user(f"question {n}"), assistant("right"), assistant("wrong")) for n in range(11)]
TEXTS = ["x" * n for n in range(11)]
WANTED = [None if n == 4 else float(n) for n in range(11)]


@dataclass(frozen=True)
class Together(Launch):
    """Processes that are threads."""

    barrier: Any = None

    def wait(self) -> None:
        self.barrier.wait(timeout=20)


@dataclass
class Length(Pointwise):
    """A text's length as its reward, no verdict for one of 4 letters; remembers what it was asked."""

    asked: list[str] = field(default_factory=list)

    def score(self, items: Sequence[tuple[Messages, str]]) -> list[Verdict]:
        self.asked += [text for _, text in items]
        return [Verdict(float(len(text)), failed=len(text) == 4) for _, text in items]


def in_processes(count: int, work: Callable[[Launch], Any]) -> list[Any]:
    """What each of several processes returns."""
    barrier, found = threading.Barrier(count), [None] * count

    def run(rank: int) -> None:
        found[rank] = work(Together(rank, count, torch.device("cpu"), barrier))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_judging_is_shared_and_every_process_has_all_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(decoding, "PROMPTS_PER_SHARD", 2)
    rankers = [Length() for _ in range(processes)]

    def rewards(launch: Launch) -> list[float | None]:
        return HeldOutJudge(rankers[launch.rank], launch, tmp_path).rewards(ROWS, TEXTS, "greedy")

    assert in_processes(processes, rewards) == [WANTED] * processes
    assert sorted(text for each in rankers for text in each.asked) == TEXTS
    assert all(each.asked for each in rankers)
    # Six shards are there: a repeat, under another number of processes, judges nothing again.
    again = Length()
    assert HeldOutJudge(again, Launch(0, 1, torch.device("cpu")), tmp_path).rewards(ROWS, TEXTS, "greedy") == WANTED
    assert not again.asked


def test_where_one_process_judges_alone_the_others_have_no_rewards_and_do_not_wait(tmp_path: Path) -> None:
    ranker = Length()

    def rewards(launch: Launch) -> list[float | None]:
        return HeldOutJudge(ranker if launch.main else None, launch, tmp_path, alone=True).rewards(ROWS, TEXTS, "greedy")

    assert in_processes(2, rewards) == [WANTED, [None] * 11]
    assert ranker.asked == TEXTS and not list(tmp_path.iterdir())
