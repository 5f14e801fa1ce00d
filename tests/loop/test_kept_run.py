"""A run that keeps policies along a training: killed on its way, evaluated at each, and the same as one that keeps none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.kept import identity_of, place_of
from handbook_ext.evaluation.set_evaluation import read_set_evaluation
from handbook_ext.reports.ledger_checks import chain_faults
from handbook_ext.reports.shipment import policy_shipment
from tests.workspace import MICRO, Workspace, changed

SETS = "benchmarks: {sets: {small: {source: test, rows: 3, measures: [single], max_new_tokens: 5}}}\nhealth: {max_kl: 1000}\n"
PLAIN = changed(MICRO, train="alpha: 0, learning_rate: 2e-3, warmup_ratio: 0.0").replace("{iter2", "{iter1: null, iter2")
KEEPING = changed(PLAIN, train="keep_at: [0.34, 0.67]") + SETS
RUN, KEPT = "runs/mine-micro", ("iter0@34", "iter0@67")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A whole run, whose training was killed when it had kept its first policy and written the checkpoint after it."""
    workspace = Workspace(tmp_path_factory.mktemp("kept"), KEEPING)
    for command in workspace.commands("mine-micro"):
        if "train_policy" in command:
            partial = workspace.folder / f"{RUN}/iter0/.policy.partial/checkpoints"
            assert workspace.execute(command, kill_when=(partial / "checkpoint-1/complete").exists)[0] == -9
            assert (partial / "at-34/config.json").exists()
        status, said = workspace.execute(command)
        assert status == 0, said
    return workspace


def evaluation(workspace: Workspace, policy: str) -> dict:
    return json.loads((workspace.folder / RUN / policy / "eval.json").read_text())


def test_each_kept_policy_is_published_and_evaluated_as_itself(finished: Workspace) -> None:
    policy = finished.folder / RUN / "iter0/policy"
    assert read_manifest(policy)["kept"] == {"at-34": 1, "at-67": 2} and read_manifest(policy)["steps"] == 3
    found = {name: evaluation(finished, name) for name in ("sft", *KEPT, "iter0")}
    assert [each["policy"]["name"] for each in found.values()] == [*found]
    assert len({each["policy"]["sha256"] for each in found.values()}) == len(found)
    for name in (*KEPT, "iter0"):
        assert found[name]["policy"]["sha256"] == identity_of(finished.folder / RUN / place_of(name))
        assert found[name]["implicit"]["initial_policy"] == "sft"
    assert len({found[name]["implicit"]["kl"] for name in (*KEPT, "iter0")}) == 3


def test_nothing_is_left_to_do_and_nothing_is_in_the_report(finished: Workspace) -> None:
    assert finished.make("-q", "mine-micro").returncode == 0
    assert "stages of mine-micro are up to date" in finished.make("mine-micro-why").stdout
    report = yaml.safe_load((finished.folder / RUN / "report.yaml").read_text())
    assert report["policies"] == ["sft", "iter0"]
    assert "@" not in (finished.folder / RUN / "report/report.md").read_text()
    assert (finished.folder / RUN / "iter0/health.json").is_file()


def test_a_kept_policy_answers_a_set(finished: Workspace) -> None:
    commands = finished.run("mine-micro-iter0@67-eval")
    assert [command.split("scripts/")[1] for command in commands] == [
        f"prepare_prompts.py {RUN}/prompts/small", f"answer_prompts.py {RUN}/iter0@67/small",
        f"grade_answers.py {RUN}/iter0@67/small",
    ]  # fmt: skip
    found = read_set_evaluation(finished.folder / RUN / "iter0@67/small/eval.json")
    assert (found.policy.name, len(found.rows)) == ("iter0@67", 3)
    assert found.policy.sha256 == identity_of(finished.folder / RUN / "iter0/policy/at-67")


def test_what_is_kept_beside_a_policy_leaves_it_what_it_is(finished: Workspace, tmp_path: Path) -> None:
    plain = Workspace(tmp_path / "plain", PLAIN)
    plain.run("mine-micro-iter0")
    ours, theirs = (read_manifest(each.folder / RUN / "iter0/policy") for each in (finished, plain))
    assert ours["policy"] == theirs["policy"] and "kept" not in theirs
    assert {name: each["sha256"] for name, each in ours["files"].items() if "/" not in name} == {
        name: each["sha256"] for name, each in theirs["files"].items()
    }


def test_a_report_of_its_own_shows_the_way(finished: Workspace) -> None:
    status, said = finished.execute(f"scripts/write_report.py {RUN} --iterations {' '.join(KEPT)} iter0 --out runs/way/report")
    assert status == 0, said
    summary = json.loads((finished.folder / "runs/way/report/summary.json").read_text())
    assert [row["policy"] for row in summary["recipes"][0]["policies"]] == ["sft", *KEPT, "iter0"]


def test_a_ledger_holds_and_tells_an_evaluation_of_another_policy(finished: Workspace, tmp_path: Path) -> None:
    for script in (f"pack_run.py {RUN} --out {tmp_path}/x.ledger.zip", f"verify_ledger.py {tmp_path}/x.ledger.zip"):
        status, said = finished.execute(f"scripts/{script}")
        assert status == 0, said
    assert not [fault for fault in chain_faults(finished.folder / RUN) if "@" in fault]
    run = tmp_path / "mine-micro"
    shutil.copytree(finished.folder / RUN, run)
    path = run / "iter0@34/eval.json"
    content = json.loads(path.read_text())
    content["policy"]["sha256"] = evaluation(finished, "iter0")["policy"]["sha256"]
    path.write_text(json.dumps(content))
    [fault] = [each for each in chain_faults(run) if "@" in each]
    assert fault.startswith("iter0@34/eval.json: was made of another policy")


def test_what_was_kept_stays_here_when_the_policy_goes_to_the_hub(finished: Workspace) -> None:
    shipment = policy_shipment(finished.folder / RUN / "iter0", "me/name")
    assert "model.safetensors" in shipment.files and not any(name.startswith("at-") for name in shipment.files)
    assert shipment.left_out["at-34/model.safetensors"] == "a policy that training kept on its way"


def test_a_kept_policy_that_was_damaged_is_refused_where_it_is_read(finished: Workspace) -> None:
    path = finished.folder / RUN / "iter0/policy/at-67/generation_config.json"
    before = path.read_text()
    path.write_text("{}")
    try:
        status, said = finished.execute(f"scripts/evaluate_policy.py {RUN}/iter0@67")
        assert status == 2 and "iter0/policy/at-67 was changed after stage 'train' made it" in said
        assert finished.execute(f"scripts/evaluate_policy.py {RUN}/iter0@34")[0] == 0
    finally:
        path.write_text(before)


def test_shares_that_leave_no_step_of_their_own_stop_the_training_in_one_line(finished: Workspace) -> None:
    finished.write(KEEPING.replace("[0.34, 0.67]", "[0.1, 0.67]"))
    try:
        assert finished.make("-n", f"{RUN}/iter0/policy/manifest.json").returncode == 0
        status, said = finished.execute(f"scripts/train_policy.py {RUN}/iter0")
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(errors) == 1
        assert "train.keep_at: its shares of 3 optimizer steps are 0, 2, but each policy needs a step" in errors[0]
    finally:
        finished.write(KEEPING)
