import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict

from handbook_ext.core.artifacts import manifest_path, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import verified
from handbook_ext.core.stage import Stage
from handbook_ext.core.stage_settings import StageSettings

COUNTS = {"in": 1, "out": 1}


class AnyStage(StageSettings):
    """A stage with any setting."""

    model_config = ConfigDict(extra="allow")
    file = "any.yaml"
    artifact = "pairs.jsonl"


def stage_of(artifact: Path, inputs: list[Path] | None = None, **settings: Any) -> Stage[AnyStage]:
    named = {"inputs": {"all": [os.path.relpath(path, artifact.parent) for path in inputs or []]}}
    return Stage(artifact, AnyStage(**{"stage": "select", **named, **settings}))


def make(folder: Path, inputs: list[Path] | None = None, text: str = "{}\n", **settings: Any) -> Stage[AnyStage]:
    stage = stage_of(folder / "pairs.jsonl", inputs, **settings)
    if not stage.finished():
        stage.out.write_text(text)
        stage.publish(COUNTS)
    return stage


def test_a_finished_stage_is_not_made_again_and_a_changed_setting_makes_it_again(tmp_path: Path) -> None:
    make(tmp_path, rule="a", text="1\n")
    make(tmp_path, rule="a", text="2\n")
    assert (tmp_path / "pairs.jsonl").read_text() == "1\n"
    make(tmp_path, rule="b", text="3\n")
    assert (tmp_path / "pairs.jsonl").read_text() == "3\n"


def test_the_name_of_the_recipe_alone_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, recipe="x", text="1\n")
    make(tmp_path, recipe="y", text="2\n")
    assert (tmp_path / "pairs.jsonl").read_text() == "1\n"


def test_rows_lost_without_a_reason_stop_the_stage(tmp_path: Path) -> None:
    stage = stage_of(tmp_path / "pairs.jsonl")
    stage.finished()
    stage.out.write_text("{}\n")
    with pytest.raises(UserError, match="1 of 3 rows are lost"):
        stage.publish({"in": 3, "out": 1, "dropped": {"tie": 1}})
    with pytest.raises(UserError, match="-1 of 1 rows are lost"):
        stage.publish({"in": 1, "out": 2})
    assert not (tmp_path / "pairs.jsonl").exists()


def test_changed_missing_and_unfinished_artifacts_are_refused(tmp_path: Path) -> None:
    pairs = make(tmp_path).artifact
    pairs.write_text("[]\n")
    with pytest.raises(UserError, match="was changed after stage 'select' made it"):
        verified(pairs)
    pairs.unlink()
    with pytest.raises(UserError, match="missing though its manifest exists"):
        verified(pairs)
    manifest_path(pairs).unlink()
    with pytest.raises(UserError, match="not finished"):
        verified(pairs)


def test_an_artifact_of_inputs_since_replaced_is_stale_and_a_deleted_input_is_not(tmp_path: Path) -> None:
    source = make(tmp_path / "iter0", text="1\n").artifact
    result = make(tmp_path / "iter1", [source]).artifact
    verified(result)
    make(tmp_path / "iter0", text="2\n", rule="other")
    with pytest.raises(UserError, match="is stale: it was made from another"):
        verified(result)
    source.unlink()
    manifest_path(source).unlink()
    verified(result)


def test_a_workspace_of_other_settings_is_emptied_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate in (1, 2):
        stage = stage_of(tmp_path / "policy", stage="train", train={"learning_rate": rate})
        stage.finished()
        stage.release()
        assert not (stage.workspace / "checkpoint").exists()
        (stage.workspace / "checkpoint").touch()
    assert "starting afresh, because of settings.train.learning_rate" in capsys.readouterr().err


def test_a_workspace_whose_record_is_damaged_is_emptied_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What lies there may be of other settings."""
    for damage in ("", "[1]", "{"):
        stage = stage_of(tmp_path / "policy")
        stage.finished()
        stage.release()
        (stage.workspace / "checkpoint").touch()
        (stage.workspace / "stage.json").write_text(damage)
        again = stage_of(tmp_path / "policy")
        assert not again.finished()
        again.release()
        assert not (stage.workspace / "checkpoint").exists()
        assert "starting afresh, because of its record, which is missing or damaged" in capsys.readouterr().err


def test_a_file_in_the_place_of_a_workspace_is_removed(tmp_path: Path) -> None:
    stage = stage_of(tmp_path / "policy")
    stage.workspace.touch()
    assert not stage.finished()
    assert stage.workspace.is_dir()


def test_what_a_killed_publication_had_put_aside_stops_no_other(tmp_path: Path) -> None:
    for rule in ("a", "b"):
        stage = stage_of(tmp_path / "model", rule=rule)
        assert not stage.finished()
        stage.out.mkdir()
        (stage.out / "weights").write_text(rule)
        (stage.workspace / "replaced").mkdir()
        (stage.workspace / "replaced" / "weights").touch()
        stage.publish(COUNTS)
    assert (tmp_path / "model/weights").read_text() == "b"


def test_what_a_killed_stage_had_begun_is_no_part_of_what_is_taken_over(tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.mk").touch()
        stage = stage_of(tmp_path / run / "logprobs")
        assert not stage.finished()
        stage.out.mkdir()
        (stage.out / "shard-000000.jsonl").write_text("{}\n")
        if run == "one":
            stage.publish(COUNTS)
        else:
            (stage.out / "begun").touch()
            stage.release()
    assert stage_of(tmp_path / "two/logprobs").finished(share=True)
    assert {path.name for path in (tmp_path / "two/logprobs").iterdir()} == {"shard-000000.jsonl", "manifest.json"}


def test_a_stage_that_is_up_to_date_leaves_file_and_manifest_newer_than_its_inputs(tmp_path: Path) -> None:
    """Make looks at both: an input that was written anew with equal content would start the stage each time."""
    source = make(tmp_path / "iter0").artifact
    result = make(tmp_path / "iter1", [source]).artifact
    for path in (result, manifest_path(result)):
        os.utime(path, (1, 1))
    make(tmp_path / "iter1", [source], text="made again\n")
    assert result.read_text() == "{}\n"
    assert min(path.stat().st_mtime_ns for path in (result, manifest_path(result))) >= source.stat().st_mtime_ns


def test_the_log_of_a_policy_is_not_part_of_its_hash(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("w")
    before = sha256_of(tmp_path)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"seconds": 1}))
    assert sha256_of(tmp_path) == before
    (tmp_path / "model").write_text("v")
    assert sha256_of(tmp_path) != before


def test_a_settings_file_of_another_stage_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_text("stage: [select]\n")
    with pytest.raises(UserError, match=r"any.yaml: stage: Input should be a valid string; run make, which writes this file"):
        Stage.open(tmp_path, AnyStage)


@pytest.mark.parametrize("what", ["pairs.jsonl", "pairs.manifest.json"])
def test_a_folder_where_a_stage_leaves_a_file_is_one_line_before_the_work(tmp_path: Path, what: str) -> None:
    (tmp_path / what).mkdir()
    stage = stage_of(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match=f"{what}: is a folder, and a file is needed there"):
        stage.finished()
    stage.release()  # As the end of its process does.
    (tmp_path / what).rmdir()
    make(tmp_path)


@pytest.mark.parametrize("link", [None, "policy", "nowhere"])
def test_what_is_no_folder_where_a_stage_leaves_one_stays_and_is_told(tmp_path: Path, link: str | None) -> None:
    policy = tmp_path / "policy"
    policy.write_text("notes") if link is None else policy.symlink_to(link)
    with pytest.raises(UserError, match="policy: is a file or a broken link, and a folder is needed there"):
        stage_of(policy).finished()
    assert os.path.lexists(policy)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_place_of_a_workspace_is_removed_and_not_what_it_leads_to(tmp_path: Path, there: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.mkdir()
        (elsewhere / "mine").touch()
    (tmp_path / ".pairs.jsonl.partial").symlink_to(elsewhere)
    make(tmp_path)
    assert (tmp_path / "pairs.jsonl").is_file()
    assert (elsewhere / "mine").is_file() == there
