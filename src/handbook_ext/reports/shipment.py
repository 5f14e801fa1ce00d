"""What of a policy and of its run goes to the hub, under which names, and what stays here and why."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from handbook_ext.core.artifacts import LOADED, read_manifest, sha256_of
from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import verified
from handbook_ext.core.kept import KEPT, iteration_of
from handbook_ext.reports.card_facts import TrainedPolicy
from handbook_ext.reports.hub import Kind, dataset_card
from handbook_ext.reports.ledger_pack import artifacts_of, shared_files
from handbook_ext.reports.model_card import render_card
from handbook_ext.reports.page_environment import markdown_escaped
from handbook_ext.reports.privacy import home_paths, secrets_in, without_paths

CARD = "README.md"
DATA_TEMPLATE = "dataset_card.md.j2"
# A library may note in them where it loaded a model from.
CONFIGURATIONS = {"config.json", "tokenizer_config.json", "generation_config.json"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl"}


@dataclass(frozen=True)
class Shipment:
    """The files of one repository by their names there: a path of this disk, or the content; `left_out` says why, by name."""

    repo: str
    kind: Kind
    files: Mapping[str, Path | bytes]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file."""
        return {name: len(what) if isinstance(what, bytes) else what.stat().st_size for name, what in sorted(self.files.items())}

    @property
    def card(self) -> str:
        """Returns the repository's card."""
        what = self.files[CARD]
        return what.decode() if isinstance(what, bytes) else what.read_text(encoding="utf-8")


def policy_shipment(folder: Path, repo: str) -> Shipment:
    """Returns what goes of the policy in runs/<run>/iter<N>: weights, configuration, tokenizer, manifest and card.

    Raises UserError for a policy that is not finished, or whose files, all of them read, are not those of its manifest.
    """
    policy = folder / "policy"
    verified(policy)
    manifest = read_manifest(policy)
    # `verified` believes a file of the recorded size and time; what leaves the house is read.
    if (found := sha256_of(policy)) != manifest["sha256"]:
        raise UserError(
            f"{policy}: is not what its manifest says (sha256 {found[:12]}, recorded {manifest['sha256'][:12]}); make it again"
        )
    files: dict[str, Path | bytes] = {}
    left_out = {"trainer_state.json": "a log of training: it goes with the run's data"}
    for name in manifest["files"]:
        path = policy / name
        if "/" in name:
            left_out[name] = "a policy that training kept on its way" if name.startswith(KEPT) else "no part of the policy itself"
        elif path.suffix in _PICKLES:
            left_out[name] = "a pickle, which runs code where it is loaded"
        elif path.suffix not in LOADED:
            left_out[name] = "nothing that a library loads"
        else:
            files[name] = path
    files["manifest.json"] = json.dumps(without_paths(manifest), indent=2).encode() + b"\n"
    files[CARD] = render_card(folder, repo).encode()
    return Shipment(repo, "model", files, left_out)


def data_shipment(folder: Path, repo: str) -> Shipment:
    """Returns what goes of the run up to runs/<run>/iter<N>: texts, rankings, pairs, manifests, evaluations; no weights."""
    policy = TrainedPolicy(folder)
    run, number = policy.run, int(folder.name.removeprefix("iter")) if folder.name.startswith("iter") else -1
    trained = {path.name: iteration_of(path.name)[4:] for path in run.glob("iter*")}
    later = {name for name, digits in trained.items() if digits.isdigit() and int(digits) > number}
    artifacts = [each for each in artifacts_of(run) if each.relative_to(run).parts[0] not in {*later, "report"}]
    files: dict[str, Path | bytes] = dict(shared_files(run, artifacts))
    rows = [name for name in sorted(files) if name.endswith(".jsonl")]
    configs = [{"config_name": name.removesuffix(".jsonl").replace("/", "-"), "data_files": name} for name in rows]
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("handbook_ext.reports"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False,  # noqa: S701 - Markdown
    )  # fmt: skip
    pages.filters["md"] = markdown_escaped
    body = pages.get_template(DATA_TEMPLATE).render(
        name=policy.name, repo=repo, configs=configs, others=[name for name in sorted(files) if name not in rows],
        data=list(policy.data()),
    )  # fmt: skip
    fields = {"license": "other", "license_name": "see-source", "tags": ["handbook_ext", "preferences"], "configs": configs}
    files[CARD] = dataset_card(body, fields).encode()
    weights = "weights and score stores: the policy has a repository of its own, and stores can be made again"
    return Shipment(repo, "dataset", files, {"policy/, logprobs/, model/": weights, "data/rows/": "the data set's own rows"})


@contextmanager
def laid_out(shipment: Shipment) -> Iterator[Path]:
    """Yields a folder with the files of a shipment, weights as links, without anything that looks like a secret.

    Raises UserError, a line for each, for files that look like one or name the folders of this machine.
    """
    with tempfile.TemporaryDirectory(prefix="push-") as name:
        folder = Path(name)
        for file, what in shipment.files.items():
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, bytes):
                target.write_bytes(what)
            else:
                target.symlink_to(what.resolve())
        faults = [f"{shipment.repo}: {fault}" for file in sorted(shipment.files) for fault in _faults(folder / file)]
        if faults:
            raise UserError(*(f"{fault}; take it out, or leave the run's data here with --no-data" for fault in faults[:10]))
        yield folder


def _faults(path: Path) -> Iterator[str]:
    """Yields what in a file must not leave the house."""
    yield from secrets_in(path)
    if path.name in CONFIGURATIONS and (home := home_paths(path.read_text(encoding="utf-8"), Path.cwd(), Path.home())):
        yield f"{path.name} names {home}, a folder of this machine"
