"""The plan of a run on a machine: arithmetic by hand, choices that keep the global batch, refusals, the recipe it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.folders import request_file
from handbook_ext.graph.goals import plan_goals
from handbook_ext.graph.makefile import run_text
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.planning import calibration, hub, machine_choice
from handbook_ext.planning.choices import Choice, best_launch
from handbook_ext.planning.figures import Setting
from handbook_ext.planning.hardware_plan import plan_text
from handbook_ext.planning.remedies import refusal
from handbook_ext.planning.request import Request, rules_once, settings_of
from handbook_ext.planning.written_recipe import write_recipe
from handbook_ext.recipes.launch_checks import crowded
from handbook_ext.recipes.run import resolve
from tests.recipe_folder import ROOT, enter_folder, mine
from tests.workspace import Workspace

RUNS = Path("runs")
MODELS = ("zephyr", "llama3", "phi3", "tinyllama", "pythia", "mistral", "smollm2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with all recipes, on a machine of 16 GB without GPUs, with an empty cache of the hub."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(machine_choice, "visible_gpus", lambda: 0)
    monkeypatch.setattr(machine_choice, "total_memory", lambda: 16_000_000_000)
    yield enter_folder(tmp_path, monkeypatch)


@pytest.fixture
def models(folder: Path) -> None:
    """The recipes of paper scale beside those of tiny."""
    for name in MODELS:
        (folder / "recipes" / name).symlink_to(ROOT / "recipes" / name)


def planned(request: Request) -> tuple[Setting, Choice, Setting]:
    """The chosen launch, the choice, and the recipe's own launch."""
    launches = settings_of(request, RUNS)
    setting, choice, _ = best_launch(launches, rules_once())
    return setting, choice, launches[0]


def text(request: Request) -> str:
    """The plan as it is printed."""
    setting, choice, own = planned(request)
    assert not choice.excess
    return plan_text(request, setting, choice, own)


@pytest.mark.parametrize(("run", "gpus", "vram"), [
    ("zephyr-selm", 2, "24"), ("zephyr-selm", 4, "40"), ("llama3-selm", 8, "24"), ("pythia-sera", 4, "40"),
    ("mistral-sera", 1, "40"), ("tinyllama-sera", 2, "24"),
])  # fmt: skip
def test_whatever_is_chosen_the_global_batch_and_the_steps_stay(models: None, run: str, gpus: int, vram: str) -> None:
    setting, choice, _ = planned(Request(run, gpus=gpus, vram=vram))
    assert not choice.excess
    batches = {"sft/policy": setting.run.settings.sft} | {
        f"{each.name}/policy": each.settings.train for each in setting.run.iterations
    }
    trained = [each for each in choice.estimates if each.artifact in batches]
    assert trained
    for each in trained:
        section = batches[each.artifact]
        assert section is not None
        assert each.micro_batch is not None
        assert each.accumulation is not None
        assert each.micro_batch * each.accumulation * gpus == section.global_batch_size
        assert each.memory.on_device <= float(vram) * 1e9
    asked = {change.key.rpartition(".")[2] for change in choice.changes}
    assert asked <= {
        "per_device_train_batch_size", "gradient_checkpointing", "head_chunk", "batch_size", "implicit_reward", "bf16",
        "tensor_parallel_size",
    }  # fmt: skip


def test_zephyr_on_the_papers_machine_needs_no_change(models: None) -> None:
    told = text(Request("zephyr-selm", gpus=8, vram="80"))
    assert "changed: nothing" in told
    assert "launch zero3\n" in told
    assert "run: make zephyr-selm GPUS=8\n" in told
    rows = [line.split() for line in told.split("\n") if line.startswith("iter1/policy")]
    assert rows[0][1:7] == ["15,283", "pairs", "60", "8", "x", "4"]


def test_zephyr_on_two_small_gpus_is_offloaded_and_says_why(models: None) -> None:
    told = text(Request("zephyr-selm", gpus=2, vram="24"))
    assert "changed: launch: zero3 -> zero3-offload (under zero3, with the smallest settings, iter" in told
    assert told.count("changed: ") == 1
    assert "of main memory; RAM= has it checked" in told
    assert "run: make zephyr-selm LAUNCH=zero3-offload GPUS=2\n" in told
    smaller = text(Request("zephyr-selm", gpus=2, vram="17"))
    assert "changed: evaluate.implicit_reward: true -> false (as the recipe has it, iter0/eval.json holds 21." in smaller
    assert "changed: train.per_device_train_batch_size: 8 -> 2 (as the recipe has it, iter1/policy holds 23." in smaller
    assert "2 x 64 accumulated x 2 = 256 a step, as before" in smaller


def test_main_memory_that_is_given_is_checked(models: None) -> None:
    _, choice, _ = planned(Request("zephyr-selm", gpus=2, vram="24", ram="64"))
    assert choice.excess
    assert all(each.what in ("main memory", "a GPU's memory") for each in choice.excess)
    _, choice, _ = planned(Request("zephyr-selm", gpus=2, vram="24", ram="256"))
    assert not choice.excess


def test_a_run_that_fits_nothing_is_refused_with_what_would_help(models: None) -> None:
    request = Request("zephyr-selm", gpus=1, vram="12", launch="zero3")
    launches = settings_of(request, RUNS)
    setting, choice, tried = best_launch(launches, rules_once())
    [message] = refusal(request, RUNS, setting, choice, tried).args
    assert message.startswith("zephyr-selm does not fit 1 GPU of 12 GB, main memory not given (RAM=): closest is launch zero3")
    assert "a GPU's memory, and there are 12.0 GB, " in message
    assert "GPUS=" in message.partition("it would fit with ")[2] or "VRAM=" in message.partition("it would fit with ")[2]
    helps = message.partition("it would fit with ")[2].split(", or ")
    for each in helps:  # Each remedy is true.
        name, _, value = each.partition("=")
        if name in ("VRAM", "GPUS"):
            more = {"vram": value} if name == "VRAM" else {"gpus": int(value)}
            _, found, _ = planned(Request(**({"run": "zephyr-selm", "gpus": 1, "vram": "12", "launch": "zero3"} | more)))
            assert not found.excess


def test_gpus_that_do_not_share_the_global_batch_are_refused(models: None) -> None:
    with pytest.raises(UserError, match="global_batch_size 256 cannot be divided by 3 processes"):
        settings_of(Request("zephyr-selm", gpus=3, vram="80"), RUNS)


def test_a_recipe_whose_own_launch_cannot_meet_its_batch_is_planned_for_other_gpus(models: None) -> None:
    Path("recipes/mine/odd.yaml").write_text("base: ../tinyllama/sera.yaml\nlaunch: ddp\ngpus: 3\n")
    with pytest.raises(UserError, match="128 cannot be divided by 3 processes"):
        plan_goals(["mine-odd-plan"], {"VRAM": "80"})
    assert plan_goals(["mine-odd-plan"], {"GPUS": "2", "VRAM": "80"}).planned
    assert "GPUS=2" in text(Request("mine-odd", gpus=2, vram="80"))
    with pytest.raises(UserError, match="cannot be divided by 3 processes"):
        settings_of(Request("mine-odd", gpus=3, vram="80"), RUNS)


@pytest.mark.parametrize(("content", "said"), [
    ("{", "is damaged, so its rates were not used; make calibrate writes it anew"),
    ('{"format": 1}', "is damaged"), ('{"format": 1, "hardware": {}, "rates": {"cpu, 1 threads": {}}}', "is damaged"),
    ('{"format": 1, "hardware": 5, "rates": []}', "is damaged"), ('{"format": 0}', "is of another version of this project"),
])  # fmt: skip
def test_a_calibration_that_cannot_be_read_is_told(content: str, said: str) -> None:
    assert calibration.damage(RUNS) == []
    RUNS.mkdir(exist_ok=True)
    Path(RUNS, calibration.RECORD).write_text(content)
    assert calibration.read_rates(RUNS, 1, gpu=False) is None
    [line] = calibration.damage(RUNS)
    assert line.startswith(f"runs/calibration.json {said}")


def test_a_plan_notes_what_is_odd_and_counts_no_checkpoint_of_adapters(models: None) -> None:
    judge = "evaluate: {judge: ranker}\nrank: {ranker: pairrm, model: llm-blender/PairRM}\n"
    mine(f"base: ../smollm2/selm.yaml\nmodel: {{lora: {{r: 8}}}}\n{judge}", "lora")
    RUNS.mkdir(exist_ok=True)
    Path(RUNS, calibration.RECORD).write_text("{")
    told = text(Request("mine-lora"))
    assert "of policies; checkpoints to resume from hold adapters alone, which take little" in told
    assert "0.0 MB" not in told
    assert "note: runs/calibration.json is damaged" in told
    several = crowded(replace(resolve("tiny-selm").launch, name="ddp-cpu", processes=5000))
    assert several[0].startswith("launch ddp-cpu starts 5000 processes on ")
    assert not crowded(resolve("tiny-selm").launch)


def test_gpus_need_their_memory_and_a_cpu_has_none(models: None) -> None:
    with pytest.raises(UserError, match="give that of one in GB, such as VRAM=24"):
        settings_of(Request("zephyr-selm"), RUNS)
    with pytest.raises(UserError, match="the launch cpu has no GPU; leave VRAM out"):
        settings_of(Request("tiny-selm", launch="cpu", vram="24"), RUNS)


def test_the_recipe_that_a_plan_leaves_needs_no_change_and_is_honoured(models: None, folder: Path) -> None:
    request = Request("zephyr-selm", gpus=2, vram="17", write="recipes/mine/small.yaml")
    setting, choice, own = planned(request)
    said = write_recipe(request, setting, choice, own)
    assert said == "written: recipes/mine/small.yaml; make mine-small runs it, make mine-small-plan VRAM=17 plans it\n"
    assert write_recipe(request, setting, choice, own).startswith("as before: ")
    written = Path("recipes/mine/small.yaml").read_text()
    assert "base: ../zephyr/selm.yaml\n" in written
    assert "implicit_reward: false  # true before: as the recipe has it, iter0/eval.json holds" in written
    run = resolve("mine-small")
    assert (run.launch.name, run.launch.processes, run.settings.evaluate.implicit_reward) == ("zero3-offload", 2, False)
    assert "recipes/accelerate/zero3-offload.yaml --num_processes 2 scripts/train_policy.py" in run_text(
        run, run_rules(run), RUNS
    )
    again, found, first = planned(Request("mine-small", vram="17"))
    assert "changed: nothing\nrun: make mine-small\n" in plan_text(Request("mine-small", vram="17"), again, found, first)
    Path("recipes/mine/small.yaml").write_text(written + "seed: 3\n")
    with pytest.raises(UserError, match=r"recipes/mine/small.yaml is there already and says something else"):
        write_recipe(request, setting, choice, own)


def test_a_changed_micro_batch_is_written_where_an_iteration_states_its_own(models: None, folder: Path) -> None:
    mine("base: ../zephyr/selm.yaml\niterations: {iter2: {train: {per_device_train_batch_size: 16}}}\n", "own")
    request = Request("mine-own", gpus=2, vram="24", set="", write="recipes/mine/fits.yaml")
    setting, choice, own = planned(request)
    assert not choice.excess
    write_recipe(request, setting, choice, own)
    again, found, _ = planned(Request("mine-fits", vram="24"))
    assert not found.excess
    assert not found.changes
    assert again.run.launch.name == setting.run.launch.name


def test_a_written_recipe_holds_neither_a_try_nor_a_seed(models: None) -> None:
    request = Request("zephyr-selm-seed3", gpus=8, vram="80", write="recipes/mine/x.yaml")
    setting, choice, own = planned(request)
    with pytest.raises(UserError, match="not what SET, DATA, a variant or a seed adds"):
        write_recipe(request, setting, choice, own)


def test_pythias_fine_tuning_fits_the_gpus_of_its_recipe(models: None) -> None:
    _, choice, _ = planned(Request("pythia-dpo", vram="80"))
    assert not choice.changes
    _, choice, _ = planned(Request("pythia-dpo", vram="80", set="sft.per_device_train_batch_size=16"))
    assert [(each.key, each.after) for each in choice.changes] == [("sft.per_device_train_batch_size", 8)]


def test_the_tiny_recipe_is_planned_on_a_cpu_with_the_steps_that_it_takes() -> None:
    setting, choice, _ = planned(Request("tiny-selm"))
    steps = {each.artifact: each.steps for each in choice.estimates if each.steps is not None}
    assert steps == {"sft/policy": 1782, **{f"iter{number}/policy": 63 for number in range(4)}}
    assert not choice.changes
    assert not setting.machine.on_gpu
    assert setting.amounts.rows_basis == "counted in the tiny world"
    # A request has 12 words; the template adds a header and an end to it, and a header for the answer.
    assert {each.prompt for each in setting.amounts.pairs} == {18}
    told = text(Request("tiny-selm"))
    assert "basis: time assumed, conservative: make calibrate measures this machine" in told
    assert "run: make tiny-selm\n" in told


def test_a_cpu_that_is_too_small_gets_smaller_micro_batches_then_a_refusal() -> None:
    mine("sft: {max_length: 1024}\ngenerate: {batch_size: 4096}\n")
    _, choice, _ = planned(Request("mine-selm", ram="0.6"))
    assert [each.key for each in choice.changes if each.key == "generate.batch_size"]
    _, choice, _ = planned(Request("mine-selm", ram="0.3"))
    assert choice.excess
    assert choice.excess[0].what == "main memory"


def test_own_rows_are_counted_and_their_lengths_estimated_without_a_tokenizer(folder: Path) -> None:
    rows = [{"prompt": "say it " * 10, "chosen": "a" * 84, "rejected": "b" * 42} for _ in range(6)]
    for name in ("train", "test"):
        lines = [json.dumps({**row, "prompt": f"{row['prompt']} {number}{name}"}) for number, row in enumerate(rows)]
        Path(f"recipes/mine/{name}.jsonl").write_text("\n".join(lines) + "\n")
    one = "iterations: {iter0: null, iter1: {}, iter2: null, iter3: null}"
    mine(f"data: {{train: train.jsonl, test: test.jsonl, portions: 1}}\n{one}\n")
    [setting] = settings_of(Request("mine-selm"), RUNS)
    assert (setting.amounts.train, setting.amounts.test, setting.amounts.sft) == (6, 6, 6)
    assert {(each.chosen, each.rejected) for each in setting.amounts.pairs} == {(21, 11)}
    assert "estimated: 4.2 bytes a token" in setting.amounts.lengths_basis


def test_a_model_or_data_set_that_nobody_knows_is_refused(folder: Path) -> None:
    mine("model: {name_or_path: some/policy}\nsft: null\n")
    with pytest.raises(UserError, match=r"the shape of 'some/policy' is not known.*name a local folder"):
        settings_of(Request("mine-selm"), RUNS)
    mine("data: {dataset: some/pairs}\n")
    with pytest.raises(UserError, match=r"the rows of 'some/pairs' are not known.*prepare them once"):
        settings_of(Request("mine-selm"), RUNS)
    (folder / "policy").mkdir()
    config = {"model_type": "mixtral", "num_local_experts": 8, "hidden_size": 8}
    (folder / "policy" / "config.json").write_text(json.dumps(config))
    mine("model: {name_or_path: policy}\nsft: null\n")
    with pytest.raises(UserError, match="a mixture of experts"):
        settings_of(Request("mine-selm"), RUNS)


def test_seconds_and_gpu_hours_add_up(models: None) -> None:
    setting, choice, _ = planned(Request("zephyr-selm", gpus=8, vram="80"))
    on_device = sum(each.seconds for each in choice.estimates if each.on_device)
    told = text(Request("zephyr-selm", gpus=8, vram="80"))
    assert f"; {on_device * 8 / 3600:,.1f} GPU-hours;" in told
    assert math.isclose(choice.seconds, sum(each.seconds for each in choice.estimates))
    assert setting.machine.rates.basis.startswith("assumed: A100 80 GB")


@pytest.mark.parametrize(("goals", "variables", "words"), [
    (["tiny-selm"], {"VRAM": "24"}, "VRAM is read by <run>-plan, and no goal here is one of these: tiny-selm; leave it out"),
    (["tiny-selm-check"], {"WRITE": "recipes/mine/x.yaml"}, "WRITE is read by <run>-plan"),
    (["bench"], {"RAM": "64"}, "RAM is read by <run>-plan"),
    (["calibrate"], {"GPUS": "2"}, "GPUS is read by .* and <run>-plan and .*, and no goal here is one of these: calibrate"),
    (["tiny-selm-plan"], {"SEEDS": "2"}, "SEEDS is read by"),
    (["tiny-selm-plan"], {"VRAM": "much"}, "VRAM: 'much' is not the GB of one GPU, above 0 and below 100000, such as 24"),
    (["tiny-selm-plan"], {"WRITE": "../x.yaml"}, "WRITE: '../x.yaml' is not recipes/<folder>/<name>.yaml in letters"),
    (["tiny-selmm-plan"], {}, "no recipe is called 'tiny-selmm'"),
])  # fmt: skip
def test_variables_of_a_plan_are_read_by_a_plan_alone(goals: list[str], variables: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_goals(goals, variables, list(variables))


def test_a_plan_asks_for_no_stage_and_hands_on_what_it_was_given() -> None:
    given = {"VRAM": "24", "GPUS": "2", "SET": "train.beta=0.5", "THREADS": "2", "RUNS": "elsewhere"}
    plan = plan_goals(["tiny-selm-plan"], given, list(given))
    assert (plan.runs, plan.wanted) == ({}, {})
    name = "tiny-selm+train.beta-0.5"
    assert plan.planned == {name: {"run": "tiny-selm", "vram": "24", "gpus": 2, "set": "train.beta=0.5", "threads": 2}}
    assert f"\t@$(PYTHON) scripts/plan_hardware.py elsewhere/{name}/{request_file(plan.planned[name])}" in plan.lines
    assert Request(**plan.planned[name]).overrides  # type: ignore[arg-type]


def test_make_plans_and_makes_nothing_of_the_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "clone")
    done = workspace.make("-n", "mine-micro-plan")
    assert done.returncode == 0, done.stderr
    [first] = (workspace.folder / "runs" / "mine-micro").iterdir()
    assert f"scripts/plan_hardware.py runs/mine-micro/{first.name}\n" in done.stdout
    done = workspace.make("mine-micro-plan", "RAM=8")
    assert done.returncode == 0, done.stderr
    assert "mine-micro on CPU, 8 GB of main memory, 1 thread, launch cpu" in done.stdout
    assert "changed: nothing\nrun: make mine-micro\n" in done.stdout
    # Each request has a file of its own: of two plans at once, none answers for the other.
    assert len([path for path in (workspace.folder / "runs" / "mine-micro").iterdir() if path.match("plan-*.json")]) == 2
    assert len(list((workspace.folder / "runs" / "mine-micro").iterdir())) == 2
    done = workspace.make("mine-micro-plan", "RAM=0.1")
    assert done.returncode != 0
    assert done.stderr.startswith("error: mine-micro does not fit CPU, 0.1 GB of main memory")
    assert "Traceback" not in done.stderr


def test_an_optimizer_that_cannot_be_offloaded_is_not(models: None) -> None:
    launches = settings_of(Request("zephyr-selm", gpus=2, vram="24", set="train.optim=rmsprop"), RUNS)
    assert not [each.sharding.name for each in launches if each.sharding.offload_optimizer]
    launches = settings_of(Request("zephyr-selm", gpus=2, vram="24"), RUNS)
    assert [each.sharding.name for each in launches if each.sharding.offload_optimizer] == [
        "zero3-offload", "zero3-offload-weights",
    ]  # fmt: skip


def test_main_memory_counts_the_policies_that_processes_read(models: None) -> None:
    setting, choice, _ = planned(Request("zephyr-selm", gpus=8, vram="80"))
    found = {each.artifact: each.memory.main["loading"] for each in choice.estimates if each.on_device}
    assert found["iter0/logprobs"] == 8 * 2 * setting.shape.weights  # Scoring, in bf16, whole in each process.
    assert found["iter0/policy"] == 2 * setting.shape.weights  # ZeRO-3 reads its parts.
    assert found["iter1/completions.jsonl"] == 0  # vLLM reads onto the GPU.
