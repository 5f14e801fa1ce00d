"""The benchmark measures what it says, and its baselines compute what they should."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from trl import DPOConfig

from handbook_ext.bench import measuring
from handbook_ext.bench.baselines import official_selm_step, padded_logprobs
from handbook_ext.bench.measuring import (
    LengthDistribution,
    PairDistribution,
    PeakMemory,
    count_flops,
    gradient_difference,
    length_quantiles,
    spread,
    write_json,
)
from handbook_ext.bench.steps import QUICK, build_model
from handbook_ext.core.errors import UserError
from handbook_ext.policies.packing import EncodedPair

ROOT = Path(__file__).resolve().parents[2]


def test_lengths_are_those_of_chat_data() -> None:
    """The default distribution has the quantiles that the README may quote, whatever the seed, and respects max_length."""
    for seed in (0, 1):
        pairs = PairDistribution().draw(64, seed)
        found = length_quantiles(pairs)
        assert 90 <= found["prompt"]["50%"] <= 110
        assert 90 <= found["completion"]["25%"] <= found["completion"]["75%"] <= 330
        assert found["prompt and completion"]["max"] <= 1024
        assert found["completion"]["max"] > 3 * found["completion"]["50%"]


def test_explored_completions_are_thirds_and_pairs_depend_on_the_seed_alone() -> None:
    """One third each is chosen, rejected, a completion of its own; completions end with the end token only."""
    pairs = PairDistribution().draw(30, 3)
    assert [sum(pair.explore_index == k for pair in pairs) for k in range(3)] == [10, 10, 10]
    assert pairs == PairDistribution().draw(30, 3)
    assert pairs != PairDistribution().draw(30, 4)
    assert all(ids.index(1) == len(ids) - 1 for pair in pairs for ids in pair.completions)


def test_completions_of_a_prompt_have_related_lengths() -> None:
    """The correlation of log-lengths is about the one asked for."""
    pairs = PairDistribution(prompt=LengthDistribution(10, 0.1)).draw(400, 0)
    logs = [[math.log(len(ids)) for ids in side] for side in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)]
    assert 0.3 < statistics.correlation(*logs) < 0.6


def test_flops_of_attention_and_products_in_place_are_counted() -> None:
    """A masked attention on the CPU and an addmm_ count as their formulas say, forward and backward."""
    query = torch.randn(2, 3, 40, 16, requires_grad=True)
    mask = torch.zeros(2, 1, 40, 40)
    one_product = 2 * 2 * 3 * 40 * 40 * 16

    def step() -> float:
        """One attention with its backward, and a product added in place."""
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask).sum()
        out.backward()
        torch.zeros(4, 6).addmm_(torch.ones(4, 5), torch.ones(5, 6))
        return out.item()

    _, flops = count_flops(step)
    assert flops == {"attention": 7 * one_product, "other": 2 * 4 * 5 * 6, "total": 7 * one_product + 240}


def test_peak_memory_sees_what_was_freed() -> None:
    """A block that holds 200 MB for a moment shows them afterwards."""
    with PeakMemory() as memory:
        held = [torch.ones(5_000_000) for _ in range(10)]
        held.clear()
    assert memory.bytes > 150e6


def test_official_step_is_the_equation() -> None:
    """Its loss is papers.md 1.2 on log-probs of single, unpadded sequences; its gradient is that of the loss."""
    torch.manual_seed(0)
    policy, reference = build_model(QUICK), build_model(QUICK)
    pairs = [EncodedPair([5, 6, 7], [8, 9, 1], [10, 1], [11, 12, 13, 14, 1]), EncodedPair([3], [4, 1], [5, 6, 1], [4, 1])]
    beta, alpha = 0.3, 0.7

    def ratio(prompt: list[int], completion: list[int]) -> torch.Tensor:
        """Log-ratio of one completion, nats."""
        sums = []
        for model in (policy, reference):
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
            logprobs = logits.log_softmax(-1)
            sums.append(sum(logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(completion)))
        return sums[0] - sums[1]

    losses = []
    for pair in pairs:
        chosen, rejected, explore = (ratio(pair.prompt, ids) for ids in (pair.chosen, pair.rejected, pair.explore or []))
        losses.append(-torch.nn.functional.logsigmoid(beta * (chosen - rejected)) + alpha * beta * explore)
    expected = torch.stack(losses).mean()
    wanted = dict(zip(dict(policy.named_parameters()), torch.autograd.grad(expected, policy.parameters()), strict=True))
    loss = official_selm_step(policy, reference, pairs, micro_batch_size=1, pad_id=0, beta=beta, alpha=alpha)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert gradient_difference({n: w.grad for n, w in policy.named_parameters()}, wanted) < 1e-5
    both = official_selm_step(policy, reference, pairs, micro_batch_size=2, pad_id=0, beta=beta, alpha=alpha)
    assert both == pytest.approx(loss, rel=1e-5)
    alone = padded_logprobs(policy, [[3]], [[4, 1]], pad_id=0)
    padded = padded_logprobs(policy, [[3], [5, 6, 7]], [[4, 1], [8, 9, 1]], pad_id=0)
    assert torch.allclose(alone[0], padded[0], rtol=1e-5)


def test_gradients_that_differ_or_are_missing_are_reported() -> None:
    """The relative difference is that of the norms; a missing gradient is infinite."""
    theirs = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    ours = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.5])}
    assert gradient_difference(ours, theirs) == pytest.approx(0.1)
    assert gradient_difference({"a": theirs["a"]}, theirs) == math.inf


def test_results_are_written_whole(tmp_path: Path) -> None:
    """The folder is made, the file is JSON, nothing partial stays; a spread is median and range."""
    write_json(tmp_path / "deep" / "x.json", spread([3.0, 1.0, 2.0]))
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.json"]


Main = Callable[[list[str]], None]


def script(name: str) -> Iterator[Main]:
    """A script's main, in this process; the number of threads is put back."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    yield module.main
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    transformers.logging.set_verbosity(verbosity)
    del sys.modules[spec.name]


@pytest.fixture
def main() -> Iterator[Main]:
    yield from script("bench_training")


@pytest.fixture
def growth() -> Iterator[Main]:
    yield from script("bench_growth")


@pytest.fixture
def bench_rows() -> Iterator[Main]:
    yield from script("bench_rows")


@pytest.fixture
def generation() -> Iterator[Main]:
    yield from script("bench_generation")


def test_quick_generation_computes_each_prompt_once_and_nothing_behind_a_rows_end(
    generation: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generation(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "generation.json").read_text())["cases"]
    assert list(found) == [f"tiny, n = {samples}" for samples in (1, 2, 5)]
    for samples, case in zip((1, 2, 5), found.values(), strict=True):
        rows, batch = case["positions"]["rows"], case["positions"]["batch"]
        assert batch["prompt"] == samples * rows["prompt"]
        assert case["needed"] <= rows["decoded"] < batch["decoded"]
        assert case["differing"] == 0 and len(case["raw"]["rows"]) == 1
    assert "tiny, n = 5" in capsys.readouterr().out


def test_quick_benchmark_runs_and_agrees(
    main: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All variants run, losses and gradients agree, ours needs fewer FLOPs, and the file holds the raw seconds."""
    main(["--quick", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "training.json").read_text())
    assert all(check["agrees"] for check in result["agreement"].values())
    assert len(result["raw"]["dpo_trl"]["seconds"]) == 1
    rows = {row["variant"]: row for row in result["rows"]}
    for kind, name in (("DPO", "live"), ("SELM", "live"), ("DPO", "precomputed")):
        alone, scored = (rows[f"{kind}, ours{more}"][name]["flop_ratio"] for more in ("", " + scoring"))
        assert min(alone, scored) > 1
        assert name == "precomputed" or alone > scored
    # A live reference is a forward pass more than a precomputed one, whose scoring is that pass.
    flops = {name: row["gflops_per_pair"] for name, row in rows.items()}
    assert flops["DPO, TRL, live reference"] == pytest.approx(flops["DPO, TRL, precomputed + scoring"], rel=0.15)
    assert flops["DPO, TRL, reference precomputed"] < 0.8 * flops["DPO, TRL, live reference"]
    assert result["agreement"]["dpo_ours_bf16 = dpo_trl_bf16"]["gradient_relative_difference"] > 1e-4  # It is bf16.
    assert "DPO, ours + scoring" in capsys.readouterr().out


def test_disagreement_is_a_failure(
    main: Callable[[list[str]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gradient that is off by 1e-4 ends the benchmark with status 1, after writing what was measured."""
    monkeypatch.setattr(measuring, "gradient_difference", lambda ours, theirs: 1e-4)
    with pytest.raises(SystemExit) as ended:
        main(["--quick", "--out", str(tmp_path)])
    assert ended.value.code == 1
    assert "DISAGREES" in capsys.readouterr().out
    assert (tmp_path / "training.json").is_file()


def test_no_rounds_is_a_user_mistake(main: Callable[[list[str]], None], tmp_path: Path) -> None:
    """It fails before anything is built or written."""
    with pytest.raises(UserError, match="--rounds is 0"):
        main(["--rounds", "0", "--out", str(tmp_path / "bench")])
    assert not (tmp_path / "bench").exists()


def test_growth_is_measured_on_equal_tokens_and_losses_agree(
    growth: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growth(["--quick", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "growth.json").read_text())
    assert list(result["cases"]) == ["48 tokens", "96 tokens"]
    for length, numbers in zip((48, 96), result["cases"].values(), strict=True):
        assert 0.9 * 4 * length < numbers["tokens"] <= 4 * length
        assert set(numbers["tokens_per_second"]) == {"dpo_ours", "dpo_trl", "dpo_trl_precomputed"}
        for kind in ("seconds", "cpu_seconds"):
            assert set(numbers[f"speed_up_in_{kind}"]) == {"dpo_trl", "dpo_trl_precomputed"}
    assert "96 tokens (" in capsys.readouterr().out


def test_losses_that_disagree_are_a_failure(growth: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handbook_ext.bench.baselines.DPOConfig", lambda **more: DPOConfig(**more | {"beta": 0.5}))
    with pytest.raises(SystemExit) as ended:
        growth(["--quick", "--out", str(tmp_path)])
    assert ended.value.code == 1


def test_rows_are_measured_at_each_number_of_them(bench_rows: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step has its seconds and its memory, in a process of its own."""
    bench_rows(["--rows", "5", "20", "--out", str(tmp_path)])
    steps = json.loads((tmp_path / "rows.json").read_text())["steps"]
    assert {"data from Parquet", "read pairs", "select", "bootstrap"} < set(steps)
    for numbers in steps.values():
        assert list(numbers) == ["5", "20"] and all(seconds >= 0 for seconds, _ in numbers.values())
    assert "20 rows" in capsys.readouterr().out
    with pytest.raises(UserError, match="--rows is 0"):
        bench_rows(["--rows", "0"])
