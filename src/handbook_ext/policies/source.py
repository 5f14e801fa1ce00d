"""Where a stage's policy comes from: an artifact of its run, or the checkpoint that the recipe names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.core.kept import identity_of, place_of
from handbook_ext.core.stage import Stage
from handbook_ext.policies.adapters import ADAPTER
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.models import external_checkpoint_hashes, generation_ends, load_policy, load_tokenizer
from handbook_ext.policies.token_store import TokenStore
from handbook_ext.recipes.settings import ModelSettings

TOKENS = ".tokens"  # The folder of a run that keeps token ids; it can be deleted at any time.


@dataclass(frozen=True)
class PolicySource:
    """A checkpoint, how it is loaded, and its policy hash; `artifact` is None for one that no stage of the run made."""

    location: str
    model: ModelSettings
    sha256: str
    artifact: Path | None

    @property
    def trained_here(self) -> bool:
        """Tells whether a stage of the run made it: it then has no revision, and the recipe's chat template already."""
        return self.artifact is not None

    def load(self, **changes: Any) -> PreTrainedModel:
        """Returns the policy in evaluation mode; `changes` replace settings of the recipe's model."""
        return load_policy(self.location, self.model.model_copy(update=changes), trained_here=self.trained_here)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the policy's tokenizer, with a chat template and a pad token."""
        return load_tokenizer(self.location, self.model, trained_here=self.trained_here)

    def encoder(self, limits: Mapping[str, Any], run: Path | None = None) -> ChatEncoder:
        """Returns the encoder of the policy's tokenizer under a stage's limits; with `run`, its folder keeps the token ids."""
        tokenizer = self.load_tokenizer()
        ends = generation_ends(self.location, self.model, trained_here=self.trained_here)
        modes = [limits.get("legacy_template", False), limits.get("special_tokens", "text"), sorted(ends)]
        # A legacy prompt may depend on its completions, and is not kept apart from them.
        store = None if run is None or limits.get("legacy_template") else TokenStore(run / TOKENS, tokenizer, *modes)
        return ChatEncoder(tokenizer, **limits, generation_ends=ends, store=store)


def policy_of(stage: Stage[Any], launch: Launch, role: str = "policy") -> PolicySource:
    """Returns the policy that a stage reads under a role; the recipe's checkpoint where the role is no input.

    The policy of a run is known by its manifest, and its weights are not read for it. The content of an external checkpoint
    becomes part of what determines the stage; the first process alone reads its weights for that.
    Raises UserError where the recipe names no checkpoint.
    """
    model: ModelSettings = stage.settings.model
    artifacts = stage.inputs(role)
    if artifacts:
        return _trained(artifacts[0], model)
    return _checkpoint(stage, launch, model)


def named_policy(stage: Stage[Any], launch: Launch, name: str) -> PolicySource:
    """Returns a policy of the stage's run by its name: sft, iter1, iter1@25, or `start` for the recipe's checkpoint."""
    if name == START and stage.settings.model.package is None:
        return _checkpoint(stage, launch, stage.settings.model)
    return _trained(stage.run / place_of(name), stage.settings.model)


def base_of(source: PolicySource, artifact: Path) -> str:
    """Returns what an adapter names as its base: a hub id or a folder; for a policy of the run its path from the adapter."""
    return source.location if source.artifact is None else os.path.relpath(source.artifact, artifact / ADAPTER)


def _trained(artifact: Path, model: ModelSettings) -> PolicySource:
    """Returns a policy that a stage of the run trained, kept on the way, or fetched."""
    return PolicySource(str(artifact), model, identity_of(artifact), artifact)


def _checkpoint(stage: Stage[Any], launch: Launch, model: ModelSettings) -> PolicySource:
    """Returns the recipe's checkpoint, whose hashes the stage keeps."""
    place = model.name_or_path
    if place is None:
        raise UserError("model.name_or_path is not set, so there is no policy to start from")
    hashes = launch.first_alone(lambda: external_checkpoint_hashes(place, model, stage.hash_of))
    stage.external |= hashes
    return PolicySource(place, model, hashes["policy"], None)
