"""Memory of stages by hand: 7B under ZeRO-3 and DDP, launches as their files say, logits, caches, published shapes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.jsonl import write_json
from handbook_ext.planning import calibration
from handbook_ext.planning.calibration import FORMAT, Rates, at_width, gpu_rates, rates_of, read_rates
from handbook_ext.planning.memory_model import (
    Numbers,
    Rows,
    logits_bytes,
    policy_states,
    sampling_memory,
    scoring_memory,
    training_memory,
)
from handbook_ext.planning.samplings import _distinct
from handbook_ext.planning.shapes import MISTRAL_7B, SHAPES, shape_of
from handbook_ext.planning.sharding import Sharding, sharding_of
from handbook_ext.planning.stage_work import padded_mean
from handbook_ext.planning.time_model import Training, sampling_seconds, training_seconds
from handbook_ext.recipes.launch_checks import Launch
from handbook_ext.recipes.settings import LoraSettings, ModelSettings
from tests.recipe_folder import ROOT

W = 7_241_732_096
BF16 = ModelSettings(name_or_path="some/policy", dtype="bfloat16")


@pytest.mark.parametrize(("name", "weights"), [
    ("HuggingFaceH4/mistral-7b-sft-beta", 7_241_732_096), ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
    ("microsoft/Phi-3-mini-4k-instruct", 3_821_079_552), ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 1_100_048_384),
    ("EleutherAI/pythia-2.8b", 2_775_208_960), ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
])  # fmt: skip
def test_the_table_of_shapes_has_the_published_weights(name: str, weights: int) -> None:
    assert SHAPES[name].weights == weights


def test_seven_billion_weights_under_zero3_on_eight_gpus() -> None:
    held = policy_states(MISTRAL_7B, BF16, Sharding("zero3", 8, 3, True), optim="adamw_torch", bf16=True)
    eighth = W / 8
    assert held.device == {
        "weights": 2 * eighth, "gradients": 2 * eighth, "optimizer": 12 * eighth,
        # A bucket of 5e8 and 1e9 gathered weights in bf16, and the fp32 gradient of what a process updates at once.
        "communication and copies": 2 * 5e8 + 2 * 1e9 + 4 * eighth,
    }  # fmt: skip
    assert held.on_device == pytest.approx(21.1e9, rel=0.01)
    assert held.main == {}


def test_seven_billion_weights_under_ddp_lie_whole_on_each_gpu() -> None:
    held = policy_states(MISTRAL_7B, BF16, Sharding("ddp", 8), optim="adamw_torch", bf16=True)
    assert held.device == {
        "weights": 4.0 * W, "gradients": 4.0 * W, "optimizer": 8.0 * W, "communication and copies": 4.0 * W + 2.0 * W,
    }  # fmt: skip
    assert held.on_device == 22 * W
    one = policy_states(MISTRAL_7B, BF16, Sharding("gpu", 1), optim="rmsprop", bf16=False)
    assert one.device == {"weights": 4.0 * W, "gradients": 4.0 * W, "optimizer": 4.0 * W}


def test_an_offloaded_optimizer_lies_in_main_memory() -> None:
    held = policy_states(MISTRAL_7B, BF16, Sharding("zero3-offload", 2, 3, True, True), optim="adamw_torch", bf16=True)
    assert held.main == {"optimizer": 12 * W, "gradients": 6 * W}
    assert held.device == {"weights": 2 * W / 2, "communication and copies": 2 * 5e8 + 2 * 1e9}
    all_of_it = Sharding("zero3-offload-weights", 2, 3, True, True, True)
    held = policy_states(MISTRAL_7B, BF16, all_of_it, optim="adamw_torch", bf16=True)
    assert held.main["weights"] == 2 * W
    assert "weights" not in held.device


def test_adapters_leave_the_weights_in_the_recipes_type_and_train_little() -> None:
    lora = LoraSettings(r=8, target_modules=["q_proj", "v_proj"])
    own = 32 * 8 * ((4096 + 4096) + (4096 + 1024))
    assert MISTRAL_7B.adapter_weights(8, ["q_proj", "v_proj"]) == own
    model = BF16.model_copy(update={"lora": lora})
    held = training_memory(
        MISTRAL_7B, model, Sharding("gpu", 1), Rows(1, 10, 5), optim="adamw_torch", bf16=True, checkpointing=True, head_chunk=4096
    )
    assert (held.device["weights"], held.device["gradients"], held.device["optimizer"]) == (2 * W, 4 * own, 8 * own)


def test_scoring_holds_the_whole_policy_whatever_the_launch_shards() -> None:
    rows = Rows(1, 10, 5)
    zero3 = scoring_memory(MISTRAL_7B, BF16, Sharding("zero3", 8, 3, True), rows, bf16=True, head_chunk=4096)
    fsdp = scoring_memory(MISTRAL_7B, BF16, Sharding("fsdp2", 8, 3), rows, bf16=True, head_chunk=4096)
    assert zero3.device["weights"] == 2 * W
    assert (fsdp.device["weights"], fsdp.device["communication and copies"]) == (4 * W, 2 * W)


def test_the_cache_of_pythias_batch_of_256_takes_86_gb() -> None:
    held = sampling_memory(SHAPES["EleutherAI/pythia-2.8b"], 2, rows=256, distinct=64, prompt=512, new=512, sampled=True)
    assert held.device["cache"] == 2 * 256 * 1024 * 32 * 2560 * 2
    assert held.device["cache"] == pytest.approx(86e9, rel=0.01)


def test_logits_are_held_in_fp32_with_their_softmax_and_gradients() -> None:
    assert logits_bytes(MISTRAL_7B, Numbers(4, 4, 4), 10) == 10 * 32000 * 12  # Logits, softmax, one gradient.
    assert logits_bytes(MISTRAL_7B, Numbers(2, 2, 2), 10) == 10 * 32000 * 16  # And both of the head's bf16 ones.
    whole = dict(optim="adamw_torch", bf16=True, checkpointing=True)
    sharding = Sharding("zero3", 8, 3, True)
    rows = Rows(8, 1000, 6000)
    chunked = training_memory(MISTRAL_7B, BF16, sharding, rows, head_chunk=1024, **whole)  # type: ignore[arg-type]
    assert chunked.device["logits"] == 1024 * 32000 * 16


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    rows, kind = Rows(8, 1000, 6000), Sharding("zero3", 8, 3, True)
    sizes = {}
    for checkpointing in (True, False):
        held = training_memory(
            MISTRAL_7B, BF16, kind, rows, optim="adamw_torch", bf16=True, checkpointing=checkpointing, head_chunk=4096
        )
        sizes[checkpointing] = held.device["activations"]
    assert sizes[True] < sizes[False] / 5
    assert sizes[True] > 32 * 8000 * 4096 * 2


@pytest.mark.parametrize(("name", "found"), [
    ("cpu", Sharding("cpu", 1)), ("gpu", Sharding("gpu", 1)), ("ddp", Sharding("ddp", 8)), ("fsdp2", Sharding("fsdp2", 8, 3)),
    ("zero3", Sharding("zero3", 8, 3, True)), ("zero3-offload", Sharding("zero3-offload", 8, 3, True, True)),
    ("zero3-offload-weights", Sharding("zero3-offload-weights", 8, 3, True, True, True)),
])  # fmt: skip
def test_a_launch_shards_what_its_file_says(name: str, found: Sharding) -> None:
    assert sharding_of(Launch(name, found.processes), ROOT / "recipes") == found


def test_a_configuration_is_read_as_transformers_reads_it() -> None:
    values = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100}
    found = shape_of({**values, "intermediate_size": 128, "head_dim": None}, "here")
    assert (found.kv_heads, found.head_size, found.gated, found.tied) == (4, 16, True, False)
    neox = shape_of({**values, "model_type": "gpt_neox"}, "here")
    assert (neox.intermediate, neox.gated) == (256, False)


def rates(**changes: object) -> Rates:
    """Rates of round numbers."""
    values: dict[str, object] = {
        "basis": "by hand", "training": [(100.0, 1e9), (400.0, 4e9)], "scoring": [(1.0, 1e9)], "sampling": [(1.0, 1e9)],
        "layer_step": 0.001, "memory": 1e12,
    }  # fmt: skip
    return Rates(**(values | changes))  # type: ignore[arg-type]


def test_rates_between_two_widths_follow_the_logarithm() -> None:
    points = rates().training
    assert [at_width(points, width) for width in (50, 200, 1000)] == [1e9, pytest.approx(2e9), 4e9]


def test_a_training_takes_three_passes_of_its_products_and_four_with_checkpointing() -> None:
    shape = shape_of({"hidden_size": 100, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 10}, "here")
    work = Training(10, 5, 50, 50, 20)
    plain, again = (
        training_seconds(shape, Sharding("cpu", 1), rates(), work, checkpointing=each, trained=None, saved=0)
        for each in (False, True)
    )
    body = 50 * 2 * (2 * shape.layer_weights + 4 * 100 * 50)
    assert plain == pytest.approx(10 * (3 * body + 3 * 2 * 20 * 1000) / 1e9, rel=1e-3)
    assert again - plain == pytest.approx(10 * body / 1e9)


def test_a_decoding_step_takes_its_layers_products_and_bytes() -> None:
    shape = shape_of({"hidden_size": 100, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 10}, "here")
    slow = rates(memory=1e6)
    one = sampling_seconds(shape, slow, batches=1, rows=1, distinct=1, prompt=0, new=10, steps=10, size=4)
    moved = 4 * shape.weights + 2 * 2 * 5 * 2 * 100 * 4
    products = 2 * (2 * shape.layer_weights + 4 * 100 * 5) + 2 * 1000
    assert one == pytest.approx(10 * (2 * 0.001 + products / 1e9 + moved / 1e6), rel=1e-3)


def test_sampling_computes_a_prompt_once_and_a_row_until_its_end() -> None:
    shape = shape_of({"hidden_size": 100, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 10}, "here")
    fixed: dict[str, Any] = {"batches": 3, "rows": 8, "prompt": 50, "size": 4}

    def seconds(distinct: int, new: float, steps: float) -> float:
        return sampling_seconds(shape, rates(), distinct=distinct, new=new, steps=steps, **fixed)

    once = shape.body_flops(50, 50) + shape.head_flops(1)
    assert seconds(8, 10, 10) - seconds(2, 10, 10) == pytest.approx(3 * 6 * once / 1e9)
    # Steps behind a row's end take a layer's overhead and the weights, nothing of the row.
    waiting = 2 * 0.001 + 4 * shape.weights / rates().memory
    assert seconds(2, 10, 40) - seconds(2, 10, 10) == pytest.approx(3 * 30 * waiting)


def test_the_first_pass_of_sampling_holds_each_prompt_once() -> None:
    shape = SHAPES["EleutherAI/pythia-2.8b"]
    held = [sampling_memory(shape, 2, rows=256, distinct=count, prompt=2000, new=8, sampled=True) for count in (256, 65)]
    assert held[0].device["cache"] == held[1].device["cache"]
    assert held[0].device["activations"] > 3 * held[1].device["activations"]
    assert [_distinct(rows, samples) for rows, samples in ((256, 1), (256, 4), (1, 4), (2, 4))] == [256, 65, 1, 2]


def test_a_record_of_another_machine_or_another_number_of_threads_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"machine": "x", "cores": 2, "cpu": "one"}
    monkeypatch.setattr(calibration, "hardware", lambda: here)
    record = {"format": FORMAT, "hardware": here, "rates": {"cpu, 1 threads": asdict(rates())}}
    write_json(tmp_path / "calibration.json", record)
    assert read_rates(tmp_path, 1, gpu=False) == rates_of(asdict(rates()))
    assert read_rates(tmp_path, 2, gpu=False) is None
    assert read_rates(tmp_path, 1, gpu=True) is None
    monkeypatch.setattr(calibration, "hardware", lambda: here | {"cpu": "another"})
    assert read_rates(tmp_path, 1, gpu=False) is None


def test_of_a_size_the_slower_gpu_is_assumed_and_a_name_decides() -> None:
    assert gpu_rates(80).basis.startswith("assumed: A100 80 GB")
    assert gpu_rates(80, "NVIDIA H100 80GB HBM3").basis.startswith("assumed: H100")
    assert gpu_rates(20).basis.startswith("assumed: RTX 3090")


def test_the_longest_of_a_micro_batch_is_what_its_rows_are_padded_to() -> None:
    assert padded_mean((10, 20), 1) == 15
    assert padded_mean((10, 20), 2) == pytest.approx(0.25 * 10 + 0.75 * 20)
