"""Why a checkpoint or data set cannot be had, and what to do: beside the facts of `hub`, the words. No torch."""

from __future__ import annotations

from pathlib import Path

from handbook_ext.core.artifacts import ADAPTER_CONFIG, json_object
from handbook_ext.planning.hub import cached_checkpoint, cached_data, damaged, holds_checkpoint, is_hub_id, unreachable


def checkpoint_lack(name: str, revision: str | None) -> tuple[str, str] | None:
    """Returns what is wrong with a checkpoint and what to do; None where it is here, or the hub can be asked."""
    folder = Path(name)
    if folder.is_dir():
        return _folder_lack(folder)
    if not is_hub_id(name):
        return f"there is no folder '{name}'", "correct the path"
    if cached_checkpoint(name, revision):
        return None
    why = unreachable()
    at = f" at revision {revision}" if revision else ""
    return None if why is None else _not_here(f"'{name}'{at} is neither a folder here nor whole in the hub's cache", why)


def data_lack(name: str | None, revision: str | None) -> tuple[str, str] | None:
    """Returns what is wrong with a data set and what to do; None where it is here, or the hub can be asked."""
    if name is None or Path(name).is_dir() or cached_data(name, revision):
        return None
    if not is_hub_id(name):
        return f"there is no folder '{name}'", "correct the path"
    why = unreachable()
    return None if why is None else _not_here(f"'{name}' is not in the hub's cache", why)


def _folder_lack(folder: Path) -> tuple[str, str] | None:
    """Returns what a folder lacks to be a checkpoint, or an adapter whose base can be had."""
    if not holds_checkpoint(folder, (".safetensors",)):
        return (
            f"'{folder}' holds no whole checkpoint: config.json with all its safetensors files, or an adapter",
            "save it anew with save_pretrained, or correct the path",
        )
    cut = damaged(folder)
    if cut is not None:
        return f"'{cut}' is damaged: its size is not what its header says", "copy or fetch it again"
    adapter = json_object(folder / ADAPTER_CONFIG)
    base = str((adapter or {}).get("base_model_name_or_path") or "")
    # A base may be named as seen from the adapter, or from here.
    inside = next((place for place in (folder / base, Path(base)) if place.is_dir()), None)
    if adapter is None or not base:
        return None
    return _folder_lack(inside) if inside not in (None, folder) and inside is not None else checkpoint_lack(base, None)


def _not_here(what: str, why: str) -> tuple[str, str]:
    """Returns that something is not here, and that the hub is not either."""
    return f"{what}, and the hub cannot be reached ({why})", "fetch it once where there is a network, or name a local folder"
