import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workspace import SELM, Workspace

FINAL = "runs/mine-micro/iter1/policy/model.safetensors"


def weights(workspace: Workspace) -> str:
    return hashlib.sha256((workspace.folder / FINAL).read_bytes()).hexdigest()


@pytest.fixture
def finished(selm: Workspace) -> Workspace:
    return selm


@pytest.fixture
def copy(selm: Workspace, copy_of: Callable[[Workspace, str], Workspace]) -> Workspace:
    """The finished workspace, to be damaged."""
    return copy_of(selm, SELM)


def names(commands: list[str]) -> list[str]:
    return [" ".join(Path(word).name for word in ("scripts/" + command.split("scripts/")[1]).split()) for command in commands]


def test_a_run_leaves_every_artifact_and_a_manifest_that_says_from_what(finished: Workspace) -> None:
    run = finished.folder / "runs/mine-micro"
    for name in ("completions", "rankings", "pairs", "eval"):
        manifest = json.loads((run / "iter1" / f"{name}.manifest.json").read_text())
        assert manifest["counts"]["in"] == manifest["counts"]["out"] + sum(manifest["counts"].get("dropped", {}).values())
        assert {"sha256", "inputs", "settings", "seed", "seconds", "packages", "code", "hardware"} <= manifest.keys()
    assert (run / "report/report.html").exists()
    assert not list(run.rglob(".*.partial"))
    assert not list(run.rglob("*.bin"))


def test_step_zero_has_implicit_rewards_of_exactly_zero(finished: Workspace) -> None:
    for iteration in ("iter0", "iter1"):
        state = finished.folder / f"runs/mine-micro/{iteration}/policy/trainer_state.json"
        first = json.loads(state.read_text())["log_history"][0]
        assert first["rewards/chosen"] == first["rewards/rejected"] == first["rewards/margins"] == 0.0


def test_the_store_has_no_completion_twice(finished: Workspace) -> None:
    rows = [
        json.loads(line)
        for path in (finished.folder / "runs/mine-micro/iter1/logprobs").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len({(row["policy"], row["completion"]) for row in rows}) == len(rows) > 0


def test_a_repeat_does_nothing(copy: Workspace) -> None:
    assert copy.commands("mine-micro") == []


def test_a_repeat_of_a_goal_ends_as_the_goal_did(copy: Workspace) -> None:
    report = copy.make("mine-micro")
    table = (copy.folder / "runs/mine-micro/report/report.md").read_text()
    assert report.returncode == 0 and report.stdout.endswith("report: runs/mine-micro/report/report.html\n")
    for cell in ("win % vs SFT, greedy", *(line.split(" | ")[1] for line in table.splitlines() if line.startswith("| iter"))):
        assert cell in report.stdout
    one = copy.make("mine-micro-iter1", "SEEDS=", "RUNS=runs")
    assert one.returncode != 0  # Nothing of an iteration reads SEEDS.
    one = copy.make("mine-micro-iter1", "RUNS=runs")
    assert one.stdout == "policy: runs/mine-micro/iter1/policy\nnext: make mine-micro-report RUNS=runs\n"
    (copy.folder / "runs/mine-micro/report/manifest.json").unlink()
    again = copy.make("mine-micro", "V=1")
    assert (again.returncode, again.stdout.count("scripts/write_report.py")) == (0, 1), again.stderr
    assert again.stdout.split("write_report.py runs/mine-micro\n")[1] == report.stdout
    assert "[1/1] report: done in " in again.stderr and "Nothing to be done" not in report.stdout
    assert "Traceback" not in again.stderr and len(again.stderr.splitlines()) == 2


def test_files_open_with_datasets(finished: Workspace) -> None:
    import datasets

    for name in ("completions", "rankings", "pairs"):
        path = finished.folder / f"runs/mine-micro/iter1/{name}.jsonl"
        assert len(datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(finished.folder / "hf"))) > 0


def test_a_new_learning_rate_of_the_last_iteration_runs_the_check_its_training_evaluation_and_report_alone(
    copy: Workspace,
) -> None:
    before = weights(copy)
    copy.write(SELM.replace("iterations: {", "iterations: {iter1: {train: {learning_rate: 1e-3}}, "))
    assert names(copy.run("mine-micro")) == [
        "check_run.py mine-micro", "train_policy.py iter1", "evaluate_policy.py iter1", "write_report.py mine-micro",
    ]  # fmt: skip
    assert weights(copy) != before
    copy.write(SELM)
    copy.run("mine-micro-iter1")
    assert weights(copy) == before


def test_a_changed_byte_of_the_pairs_is_refused_by_name(copy: Workspace) -> None:
    pairs = copy.folder / "runs/mine-micro/iter1/pairs.jsonl"
    text = pairs.read_text()
    pairs.write_text(text.replace("e", "a", 1))
    command, *_ = copy.commands("mine-micro-iter1")
    status, said = copy.execute(command)
    assert status == 2
    assert "iter1/pairs.jsonl was changed" in said
    assert said.count("error:") == 1


def test_a_policy_trained_on_other_pairs_is_stale(copy: Workspace) -> None:
    manifest = copy.folder / "runs/mine-micro/iter0/pairs.manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**told, "sha256": "0" * 64}))
    status, said = copy.execute(".venv/bin/python scripts/evaluate_policy.py runs/mine-micro/iter0")
    assert status == 2
    assert "iter0/policy is stale: it was made from another" in said


def test_killed_in_the_middle_of_every_stage_it_ends_with_the_same_weights(finished: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "killed", SELM)
    killed = []
    for command in workspace.commands("mine-micro-iter1"):
        folder = workspace.folder / command.split()[-1]

        def half_done(folder: Path = folder) -> bool:
            """Some of the stage's work is on disk, and it is not finished."""
            partial = [path for root in (folder, folder / "sft", folder / "data") for path in root.glob(".*.partial")]
            return any(path.is_file() and path.name != "stage.json" for root in partial for path in root.rglob("*"))

        status, _ = workspace.execute(command, kill_when=half_done)
        if status == -9:
            killed.append(names([command])[0].split(".")[0])
            assert workspace.execute(command)[0] == 0
        else:
            assert status == 0
    assert {"train_sft", "train_policy", "generate_completions"} <= set(killed)
    assert weights(workspace) == weights(finished)


def test_killed_training_goes_on_from_its_checkpoint(copy: Workspace) -> None:
    copy.write(SELM.replace("iterations: {", "iterations: {iter1: {train: {learning_rate: 1e-3}}, "))
    check, command = copy.commands("mine-micro-iter1")
    assert copy.execute(check)[0] == 0
    workspace = copy.folder / "runs/mine-micro/iter1/.policy.partial"
    status, _ = copy.execute(command, kill_when=(workspace / "checkpoints/checkpoint-2/complete").exists)
    assert status == -9
    copy.write(SELM.replace("iterations: {", "iterations: {iter1: {train: {learning_rate: 3e-3}}, "))
    check, command = copy.commands("mine-micro-iter1")
    assert copy.execute(check)[0] == 0
    status, said = copy.execute(command)
    assert status == 0
    assert "starting afresh, because of settings.train.learning_rate" in said


def test_errors_of_make_are_one_line(finished: Workspace) -> None:
    for goal, words in (("mine-micro-iter7", "no iteration 'iter7'"), ("nothing-here", "no recipe is called 'nothing-here'")):
        done = finished.make(goal)
        assert done.returncode != 0
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert words in lines[0]


def test_a_run_that_is_new_to_make_is_planned_beside_one_that_is_not(copy: Workspace) -> None:
    old = copy.commands("mine-micro-seed8-iter1")
    copy.write(SELM, "fresh")
    done = copy.make("-n", "mine-fresh-iter1", "mine-micro-seed8-iter1")
    planned = [line for line in done.stdout.splitlines() if "scripts/" in line]
    assert sorted(line for line in planned if "mine-micro-seed8" in line) == sorted(old)
    assert len(planned) == 2 * len(old)


@pytest.mark.parametrize("options", [(), ("-n",)])
def test_an_unknown_goal_stops_make_before_any_stage(finished: Workspace, options: tuple[str, ...]) -> None:
    for goals, words in (
        (("mine-micro-seed9-iter1", "mine-mikro"), "(did you mean 'mine-micro'?)"),
        (("table-famly",), "(did you mean 'family'?)"),
    ):
        done = finished.make(*options, *goals)
        assert done.returncode != 0
        assert words in done.stderr
        assert "prepare_data" not in done.stdout
    assert not (finished.folder / "runs/mine-micro-seed9/data").exists()


def test_a_stage_without_its_folder_is_one_line(finished: Workspace) -> None:
    for script in sorted((finished.folder / "scripts").glob("*.py")):
        if "stage_folder(argv)" in script.read_text():
            status, said = finished.execute(f"scripts/{script.name}")
            assert (status, said.count("\n")) == (2, 1)
            assert said.startswith(f"error: {script.name} needs one folder")


def test_paper_scale_prints_real_commands(finished: Workspace) -> None:
    commands = finished.commands("zephyr-selm-iter3")
    train = [command for command in commands if "train_policy" in command]
    assert len(train) == 4
    assert all("-m handbook_ext.core.accelerated --config_file recipes/accelerate/zero3.yaml" in command for command in train)


def test_a_run_with_the_same_settings_shares_what_another_made(copy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANDBOOK_SHARE", "1")
    copy.write(SELM.replace("iterations: {", "iterations: {iter1: {train: {learning_rate: 1e-3}}, "), "twin")
    copy.run("mine-twin-iter1")
    runs = copy.folder / "runs"
    told = {
        name: json.loads((runs / "mine-twin" / name / "manifest.json").read_text()) for name in ("sft/policy", "iter1/policy")
    }
    assert told["sft/policy"]["shared_from"] == "runs/mine-micro/sft/policy"
    assert "shared_from" not in told["iter1/policy"]
    ours, theirs = (runs / run / "sft/policy/model.safetensors" for run in ("mine-twin", "mine-micro"))
    assert ours.samefile(theirs)
