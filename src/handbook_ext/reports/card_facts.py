"""What a model card says of how a policy was made: its base, methods, settings, data, machine, and limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.core.artifacts import finished_manifest, read_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.provenance import hardware_words
from handbook_ext.recipes.names import paper_row, read_name
from handbook_ext.recipes.overrides import inline
from handbook_ext.recipes.settings import DATA_SUFFIXES
from handbook_ext.reports.citations import METHODS, methods_of
from handbook_ext.reports.hub import is_hub_id
from handbook_ext.reports.privacy import without_paths

Json = dict[str, Any]

TINY_WORLD = "tiny_world"
# Of bases whose licence their own pages state plainly; of others the reader is sent there.
LICENCES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": "apache-2.0",
    "EleutherAI/pythia-2.8b": "apache-2.0",
    "microsoft/Phi-3-mini-4k-instruct": "mit",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
}
# The settings that decide most, in the order in which a reader asks for them.
FIRST: Mapping[str, tuple[str, ...]] = {
    "sft": ("learning_rate", "num_train_epochs", "global_batch_size", "lr_scheduler_type", "max_length", "packing"),
    "train": (
        "loss_type", "beta", "alpha", "learning_rate", "learning_rate_factor", "num_train_epochs", "global_batch_size",
        "lr_scheduler_type", "warmup_ratio", "optim", "max_length", "label_smoothing", "bf16",
    ),
    "select": ("rule", "keep", "keep_by", "bootstrap", "gamma"),
    "rank": ("ranker", "model", "candidates"),
    "generate": ("engine", "num_completions", "temperature", "top_p", "max_new_tokens"),
}  # fmt: skip
SFT = "sft"
_STAGES = {"train": "policy", "select": "pairs.jsonl", "rank": "rankings.jsonl", "generate": "completions.jsonl"}


@dataclass(frozen=True)
class TrainedPolicy:
    """A finished iteration of a run; `folder` is runs/<run>/iter<N>."""

    folder: Path

    @property
    def run(self) -> Path:
        """Returns the run's folder."""
        return self.folder.parent

    @property
    def name(self) -> str:
        """Returns what the policy is called: run and iteration."""
        return f"{self.folder.resolve().parent.name}-{self.folder.name}"

    @cached_property
    def manifest(self) -> Json:
        """Returns the policy's manifest; raises UserError where the policy is not finished."""
        return read_manifest(self.folder / "policy")

    @cached_property
    def stages(self) -> Mapping[str, Json]:
        """Returns the manifests of the stages that made it, by stage; a rule may need no samples, or no ranker."""
        if self.manifest["stage"] == SFT:
            return {SFT: self.manifest}
        found = {stage: finished_manifest(self.folder / name) for stage, name in _STAGES.items()}
        return {stage: manifest for stage, manifest in found.items() if manifest is not None}

    @cached_property
    def sections(self) -> Mapping[str, Json]:
        """Returns the resolved section of the recipe that each stage had, without paths of this machine."""
        return {stage: without_paths(dict(each["settings"][stage])) for stage, each in self.stages.items()}

    @cached_property
    def base(self) -> str | None:
        """Returns the name of the checkpoint that the run starts from; None for a policy built from scratch."""
        return self.manifest["settings"]["model"]["name_or_path"]  # type: ignore[no-any-return]

    @property
    def hub_base(self) -> str | None:
        """Returns the base where it is one of the hub."""
        return self.base if is_hub_id(self.base) else None

    @property
    def methods(self) -> list[str]:
        """Returns the methods of its iteration, keys of METHODS; none for a policy that was fine-tuned alone."""
        if SFT in self.stages:
            return []
        select = self.sections.get("select")
        if select is None:
            raise UserError(f"{self.folder}: has no pairs with a manifest, so what trained it is not known; run make")
        return methods_of(self.sections["train"], select, self.sections.get("rank"))

    @property
    def paper(self) -> str:
        """Returns the row of a paper that the recipe reproduces, by its file here; nothing where it names none."""
        recipe = str(self.manifest["recipe"]).partition("+")[0]
        try:
            return paper_row(read_name(recipe).file)
        except UserError:
            return ""

    @property
    def licence(self) -> str | None:
        """Returns the licence of its base as the hub calls it; None where that is not known here."""
        if self.base is None:
            return "apache-2.0" if self.data_settings.get("dataset") == TINY_WORLD else None
        return LICENCES.get(self.base)

    @cached_property
    def rows(self) -> Json:
        """Returns the manifest of the run's data, empty where there is none."""
        return finished_manifest(self.run / "data" / "rows") or {}

    @property
    def data_settings(self) -> Json:
        """Returns the resolved section `data`, as the stage that read the data had it."""
        return dict(self.rows.get("settings", {}).get("data", {}))

    def first_settings(self) -> Iterator[tuple[str, str]]:
        """Yields the settings that matter first, by dotted name; those of a rule that is not used are left out."""
        for stage, names in FIRST.items():
            section = self.sections.get(stage, {})
            wanted = [name for name in names if name in section and section[name] is not None]
            if stage == "select" and section.get("rule") != "sera":
                wanted = ["rule"] if section else []
            yield from ((f"{stage}.{name}", inline(section[name])) for name in wanted)

    def all_settings(self) -> str:
        """Returns every resolved setting of the stages that made it, as YAML."""
        text: str = yaml.dump(dict(self.sections), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=110)
        return text.strip()

    def made(self) -> Iterator[tuple[str, str]]:
        """Yields how it was made: base, method, recipe, code, machine, time, packages."""
        manifest, model = self.manifest, without_paths(self.manifest["settings"]["model"])
        revision = f" at revision {model['revision']}" if model.get("revision") else ""
        yield "base model", f"{model['name_or_path']}{revision}" if self.base else "none: built from random weights"
        yield "method", " + ".join(METHODS[each] for each in self.methods) or "supervised fine-tuning"
        if self.paper and self.methods:
            yield "row of a paper", self.paper
        overrides = ", ".join(map(str, without_paths(manifest["overrides"])))
        yield (
            "recipe",
            f"{manifest['recipe']}, {self.folder.name}, seed {manifest['seed']}" + (f", with {overrides}" if overrides else ""),
        )
        adapters = model.get("lora")
        yield "trained weights", f"adapters of rank {adapters['r']}, merged" if adapters else "all"
        size = sum(record["size"] for name, record in manifest["files"].items() if name.endswith(".safetensors"))
        yield "checkpoint", f"{size / 1e6:,.1f} MB of safetensors"
        if "steps" in manifest:
            yield "steps", str(manifest["steps"])
        yield "hardware", hardware_words(manifest)
        yield "seconds", ", ".join(f"{stage} {each['seconds']:.0f}" for stage, each in self.stages.items())
        code = manifest["code"]
        yield (
            "code",
            f"handbook_ext at commit {code['commit'] or 'unknown'}" + (", with uncommitted changes" if code["dirty"] else ""),
        )
        yield "packages", ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())

    def data(self) -> Iterator[tuple[str, str]]:
        """Yields where the training data come from, and how many rows there were and were used."""
        stated = self.data_settings
        if stated:
            yield from self._source(stated)
            yield "rows", ", ".join(f"{name} {count}" for name, count in self.rows.get("rows", {}).items())
            dropped = {reason: n for reason, n in self.rows["counts"].get("dropped", {}).items() if n}
            yield "rows dropped", ", ".join(f"{reason} {n}" for reason, n in dropped.items()) or "none"
            if stated["flip_rate"]:
                yield "labels flipped on purpose", f"{100 * stated['flip_rate']:g} %"
        pairs = self.stages.get("select")
        if pairs is not None:
            yield "pairs of this iteration", str(pairs["counts"]["out"])
            yield "their origin", ", ".join(f"{origin} {n}" for origin, n in pairs.get("origins", {}).items()) or "not recorded"

    def _source(self, stated: Json) -> Iterator[tuple[str, str]]:
        """Yields where the rows were read."""
        files = all(str(stated[name]).endswith(DATA_SUFFIXES) for name in ("train", "test"))
        if stated["dataset"] == TINY_WORLD and not files:
            yield "source", f"{TINY_WORLD}, which this project makes; seed {self.rows['seed']}"
            return
        dataset = "files of the author's" if files else str(stated["dataset"])
        yield "source", dataset + (f", configuration {stated['config_name']}" if stated["config_name"] else "")
        if not files:
            yield "revision", stated["revision"] or "not stated: the newest of that day"
        yield "files" if files else "splits", ", ".join(f"{name} {Path(str(stated[name])).name}" for name in ("train", "test"))
        demonstrations = stated["sft_dataset"] or (Path(stated["sft"]).name if stated["sft"] else None)
        yield "demonstrations", demonstrations or "the chosen answers, where the run has supervised fine-tuning"
