"""Policies that a training keeps on its way: `iter1@25` is that of iter1 after a quarter of its steps.

They lie inside the policy of their iteration, `iter1/policy/at-25`, are published with it, and are no part of its identity.
"""

from __future__ import annotations

from pathlib import Path

from handbook_ext.core.artifacts import Files, part_of, read_manifest, weights_hash
from handbook_ext.core.errors import UserError

KEPT = "at-"
"""What the folder of a kept policy begins with; the percent of the steps follows."""


def place_of(policy: str) -> str:
    """Returns where a policy lies in the folder of its run: `iter1/policy`, or `iter1/policy/at-25` of iter1@25."""
    percent = policy.partition("@")[2]
    return f"{iteration_of(policy)}/policy" + (f"/{KEPT}{percent}" if percent else "")


def iteration_of(policy: str) -> str:
    """Returns the folder of the training that made a policy: iter1 of iter1@25; of any other policy its own."""
    return policy.partition("@")[0]


def identity_of(artifact: Path) -> str:
    """Returns the hash that identifies a policy of a run, or one kept in it, by the manifest: no weights are read.

    Raises UserError where it is not finished, or training has kept none there.
    """
    if not artifact.name.startswith(KEPT):
        return str(read_manifest(artifact)["policy"])
    found = kept_identity(read_manifest(artifact.parent)["files"], artifact.name)
    if found is None:
        raise UserError(f"{artifact}: training has kept no policy there; run make, which makes {artifact.parent} again")
    return found


def kept_identity(files: Files, name: str) -> str | None:
    """Returns the hash that identifies a kept policy, by the name of its folder, from the records of the files of the whole.

    None where none is kept there.
    """
    return weights_hash({each: record["sha256"] for each, record in part_of(files, name).items()})
