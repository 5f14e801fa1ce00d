"""A policy kept within another: its name, its place, its identity, and what of it a stage verifies."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core import artifacts
from handbook_ext.core.artifacts import checkpoint_files, read_manifest, recorded_hash, sha256_of, weights_hash
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import verified
from handbook_ext.core.kept import identity_of, iteration_of, place_of
from tests.core.test_stage import COUNTS, stage_of

FILES = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "t"}


def write(folder: Path, **changes: str) -> None:
    folder.mkdir(parents=True)
    for name, text in {**FILES, **changes}.items():
        (folder / name).write_text(text)


def published(folder: Path, *kept: str) -> Path:
    """A policy with others kept in it, each of which has its own name for weights."""
    stage = stage_of(folder / "policy")
    assert not stage.finished()
    write(stage.out)
    for name in kept:
        write(stage.out / name, **{"model.safetensors": name})
    stage.publish(COUNTS)
    return stage.artifact


@pytest.mark.parametrize(
    ("policy", "iteration", "place"),
    [("sft", "sft", "sft/policy"), ("iter1@25", "iter1", "iter1/policy/at-25"), ("iter0@12.5", "iter0", "iter0/policy/at-12.5")],
)
def test_a_policy_has_a_place_by_its_name(policy: str, iteration: str, place: str) -> None:
    assert (iteration_of(policy), place_of(policy)) == (iteration, place)


def test_what_is_kept_in_a_policy_has_an_identity_of_its_own_and_changes_none(tmp_path: Path) -> None:
    alone, policy = published(tmp_path / "alone"), published(tmp_path / "iter1", "at-25", "at-2")
    assert identity_of(policy) == identity_of(alone) == read_manifest(alone)["policy"]
    for name in ("at-25", "at-2"):
        hashes = {each: sha256_of(policy / name / each) for each in FILES}
        assert identity_of(policy / name) == weights_hash(hashes) != identity_of(policy)
        assert verified(policy / name) == recorded_hash(policy / name) == sha256_of(policy / name)
    assert {path.parent for path in checkpoint_files(policy)} == {policy}


def test_a_kept_policy_that_was_changed_is_refused_where_it_is_read(tmp_path: Path) -> None:
    policy = published(tmp_path, "at-25", "at-50")
    (policy / "at-50" / "model.safetensors").write_text("other")
    verified(policy / "at-25")
    for artifact in (policy / "at-50", policy):
        with pytest.raises(UserError, match="was changed after stage 'select' made it"):
            verified(artifact)
    for path in (policy / "at-25").iterdir():
        path.unlink()
    (policy / "at-25").rmdir()
    with pytest.raises(UserError, match=r"at-25 is missing though its manifest exists; delete .*policy/manifest.json"):
        verified(policy / "at-25")


def test_weights_of_a_kept_policy_are_not_read_to_verify_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = published(tmp_path, "at-25")
    expected = sha256_of(policy / "at-25")
    monkeypatch.setattr(artifacts, "sha256_of", lambda path: pytest.fail(f"{path} is read"))
    assert verified(policy / "at-25") == expected


def test_a_policy_that_was_not_kept_is_one_line(tmp_path: Path) -> None:
    policy = published(tmp_path, "at-25")
    with pytest.raises(UserError, match=r"at-50: training has kept no policy there; run make, which makes .*policy again"):
        identity_of(policy / "at-50")
    with pytest.raises(UserError, match="iter9/policy is not finished"):
        identity_of(tmp_path / "iter9/policy/at-25")
