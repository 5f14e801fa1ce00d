"""Calibration measures through the project's own training, scoring and sampling, and what it writes is read again."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from handbook_ext.core.provenance import peak_memory
from handbook_ext.planning import calibrating
from handbook_ext.planning.calibrating import Size, measured_rates, policy_of
from handbook_ext.planning.calibration import rates_of

SIZES = (Size(64, 1, 512, 8, 6, 4, 2, 4), Size(128, 2, 512, 8, 6, 4, 2, 4))


def test_rates_are_measured_at_each_width_and_survive_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "SIZES", SIZES)
    for name in ("start_seconds", "resident"):
        monkeypatch.setattr(calibrating, name, lambda: 1.0)
    told: list[str] = []
    rates = measured_rates(torch.device("cpu"), 1, told.append)
    assert len(told) == 4
    for points in (rates.training, rates.scoring, rates.sampling):
        assert [width for width, _ in points] == [64, 128]
        assert all(1e6 < rate < 1e13 for _, rate in points)
    assert 0 < rates.layer_step < 1
    assert rates_of(json.loads(json.dumps(asdict(rates)))) == rates


@pytest.mark.parametrize("size", SIZES)
def test_the_shape_that_flops_are_counted_by_is_that_of_the_policy(size: Size) -> None:
    policy = policy_of(size, torch.device("cpu"))
    assert sum(weight.numel() for weight in policy.parameters()) == size.shape.weights


def test_a_process_knows_the_most_memory_that_it_has_held() -> None:
    before = peak_memory()["main"]
    held = bytearray(before + 2**28)
    assert peak_memory()["main"] >= len(held)
    del held
    assert peak_memory()["main"] >= before + 2**28
