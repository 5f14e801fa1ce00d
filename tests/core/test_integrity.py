"""What an input must be: made with the settings that its stage has now, and file by file what its stage left."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import Damage, damage_of, unchanged, verified
from handbook_ext.core.manifests import manifest_path, read_manifest
from handbook_ext.core.stage import Stage
from tests.core.test_stage import AnyStage, make, stage_of


def planned(folder: Path, **settings: Any) -> None:
    """Writes the settings file of a stage as the graph does, and the run.mk of its run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "select.yaml").write_text(yaml.safe_dump({"inputs": {"all": []}, "seed": 0, **settings, "stage": "select"}))
    (folder.parent / "run.mk").touch()


def reader(run: Path, source: Path) -> Stage[AnyStage]:
    """A stage of a run that reads an artifact."""
    (run / "run.mk").parent.mkdir(parents=True, exist_ok=True)
    (run / "run.mk").touch()
    return stage_of(run / "iter2" / "pairs.jsonl", [source])


def test_an_input_that_other_settings_made_is_refused_with_both_values(tmp_path: Path) -> None:
    """A policy of another learning rate, copied into the run with its manifest, was evaluated and reported."""
    source = make(tmp_path / "run/iter1", recipe="a", train={"beta": 0.1, "learning_rate": 4e-3}).artifact
    planned(tmp_path / "run/iter1", recipe="b", train={"beta": 0.1, "learning_rate": 2e-3})
    stage = reader(tmp_path / "run", source)
    with pytest.raises(UserError) as caught:
        stage.finished()
    stage.release()
    assert str(caught.value) == (
        f"{source} is stale: it was made with train.learning_rate 0.004, and {tmp_path}/run/iter1/select.yaml now says 0.002; "
        "run make, which makes it again, or give the recipe the former settings"
    )
    planned(tmp_path / "run/iter1", recipe="another name", overrides=["x"], train={"beta": 0.1, "learning_rate": 4e-3})
    assert not reader(tmp_path / "run", source).finished()


def test_an_input_that_another_stage_made_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "run/iter1", stage="train").artifact
    planned(tmp_path / "run/iter1")
    with pytest.raises(UserError, match=r"is stale: stage 'train' made it, and .*iter1 has the settings of select alone"):
        reader(tmp_path / "run", source).finished()


def test_what_another_run_expects_of_its_own_stages_stops_no_comparison(tmp_path: Path) -> None:
    source = make(tmp_path / "run/iter1", rule="old").artifact
    planned(tmp_path / "run/iter1", rule="new")
    assert not reader(tmp_path / "compared", source).finished()
    with pytest.raises(UserError, match="made with rule"):
        verified(source)


def test_an_artifact_beside_which_no_settings_lie_is_expected_to_be_nothing(tmp_path: Path) -> None:
    assert verified(make(tmp_path / "run/iter1", rule="any").artifact)


def test_files_that_are_missing_changed_or_added_are_named_and_none_of_its_time_is_read(tmp_path: Path) -> None:
    stage = stage_of(tmp_path / "model")
    assert not stage.finished()
    stage.out.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "touched"):
        (stage.out / name).write_text(name)
    stage.publish({"in": 0, "out": 0})
    files = read_manifest(stage.artifact)["files"]
    read: list[Path] = []

    def hashed(path: Path) -> str:
        read.append(path)
        return "another" if path.name == "config.json" else str(files[path.name]["sha256"])

    assert not damage_of(stage.artifact, files, hashed)
    assert not read
    (stage.artifact / "tokenizer.json").unlink()
    (stage.artifact / "model.safetensors").write_text("longer than before")
    (stage.artifact / "config.json").write_text("c" * len("config.json"))
    os.utime(stage.artifact / "touched")
    (stage.artifact / "notes").touch()
    found = damage_of(stage.artifact, files, hashed)
    assert found == Damage(("tokenizer.json",), ("config.json", "model.safetensors"), ("notes",))
    assert {path.name for path in read} == {"config.json", "touched"}  # A file of another size need not be read.
    assert str(found) == "tokenizer.json is missing; config.json, model.safetensors are changed; notes is added by hand"
    with pytest.raises(UserError, match=r"was changed after stage 'select' made it \(tokenizer.json is missing; config"):
        unchanged(stage.artifact)


def test_a_file_that_two_runs_share_cannot_be_edited_in_one_and_can_be_made_again(tmp_path: Path) -> None:
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.mk").touch()
        stage = stage_of(tmp_path / run / "model")
        if not stage.finished(share=True):
            stage.out.mkdir()
            (stage.out / "model.safetensors").write_text("weights")
            stage.publish({"in": 0, "out": 0})
    one, two = (tmp_path / run / "model/model.safetensors" for run in ("one", "two"))
    assert read_manifest(two.parent)["shared_from"] == str(one.parent)
    assert not one.samefile(two) or not one.stat().st_mode & 0o222
    assert one.stat().st_mtime_ns == two.stat().st_mtime_ns
    again = stage_of(tmp_path / "two" / "model", rule="other")
    assert not again.finished()
    again.out.mkdir()
    (again.out / "model.safetensors").write_text("other weights")
    again.publish({"in": 0, "out": 0})
    assert (one.read_text(), two.read_text()) == ("weights", "other weights")
    assert unchanged(one.parent) and unchanged(two.parent)
    shutil.rmtree(tmp_path / "one")


def _works_for_a_while(folder: Path) -> None:
    """A stage that goes on although the make that started it was killed."""
    stage = stage_of(folder / "pairs.jsonl")
    assert not stage.finished()
    (folder / "started").touch()
    time.sleep(0.3)
    stage.out.write_text("of the first\n")
    stage.publish({"in": 1, "out": 1})


def test_a_stage_that_still_runs_is_waited_for_and_not_made_beside_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    child = multiprocessing.get_context("fork").Process(target=_works_for_a_while, args=(tmp_path,))
    child.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    make(tmp_path, text="of the second\n")
    child.join()
    assert (tmp_path / "pairs.jsonl").read_text() == "of the first\n"
    assert f"waiting for another process that works in {tmp_path}" in capfd.readouterr().err
    assert manifest_path(tmp_path / "pairs.jsonl").is_file()
