"""Whether a checkpoint or data set can be had: a folder here, the hub's cache on this disk, or the hub itself. No torch."""

from __future__ import annotations

import json
import re
from functools import cache
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

from handbook_ext.core.artifacts import ADAPTER_CONFIG, json_object

SECONDS = 2.0  # For the one attempt to reach the hub.
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

Kind = Literal["models", "datasets"]


def is_hub_id(name: str) -> bool:
    """Tells whether a name can be one of the hub's, `owner/name` or `name`, rather than a path alone."""
    return _ID.fullmatch(name) is not None


def snapshot(kind: Kind, name: str, revision: str | None = None) -> Path | None:
    """Returns the folder in which the hub's cache keeps a revision of a repository; None where it keeps none."""
    folder = Path(constants.HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}")
    wanted = revision or constants.DEFAULT_REVISION
    reference = folder / "refs" / wanted
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def holds_checkpoint(folder: Path, suffixes: tuple[str, ...] = (".safetensors", ".bin")) -> bool:
    """Tells whether a folder has a configuration and all of its weights, in files of one of the suffixes; or an adapter."""
    if (folder / ADAPTER_CONFIG).is_file():
        return any((folder / f"adapter_model{suffix}").is_file() for suffix in suffixes)
    if not (folder / "config.json").is_file():
        return False
    for suffix in suffixes:
        index = json_object(next(iter(folder.glob(f"*{suffix}.index.json")), folder / "none"))
        if index is not None:
            return all((folder / str(shard)).is_file() for shard in set(dict(index.get("weight_map", {})).values()))
        if any(folder.glob(f"*{suffix}")):
            return True
    return False


def damaged(folder: Path) -> Path | None:
    """Returns the first safetensors file of a folder whose size is not what its header says; None where all are whole."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length)) if 0 < length <= path.stat().st_size - 8 else {}
            ends = [int(each["data_offsets"][1]) for name, each in header.items() if name != "__metadata__"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return path
        if not ends or path.stat().st_size != 8 + length + max(ends):
            return path
    return None


def cached_checkpoint(name: str, revision: str | None) -> bool:
    """Tells whether the hub's cache holds a whole checkpoint."""
    folder = snapshot("models", name, revision)
    return folder is not None and holds_checkpoint(folder)


def cached_data(name: str, revision: str | None) -> bool:
    """Tells whether the hub's cache holds files of a data set, or the cache of `datasets` its tables."""
    folder = snapshot("datasets", name, revision)
    return (folder is not None and any(folder.iterdir())) or tables_folder(name).is_dir()


def tables_folder(name: str) -> Path:
    """Returns where `datasets` keeps the tables of a data set that it has read."""
    return Path(constants.HF_HOME, "datasets", name.replace("/", "___").lower())


@cache
def unreachable() -> str | None:
    """Returns why the hub cannot be reached, None where it answers; one attempt by a process, SECONDS long at most."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found: list[str | None] = []

    def attempt() -> None:
        """Asks once; whatever answers, even with an error of its own, is there. Proxies are those of the environment."""
        try:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()  # noqa: S310 - the hub's address
        except HTTPError:
            found.append(None)
        except (OSError, ValueError, HTTPException) as error:
            found.append(f"{constants.ENDPOINT} does not answer: {getattr(error, 'reason', error)}")
        else:
            found.append(None)

    # In a thread: no timeout ends the look-up of a name, and a process that ends does not wait for this one.
    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found[0] if found else f"{constants.ENDPOINT} does not answer within {SECONDS:g} s"
