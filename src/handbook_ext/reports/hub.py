"""The hub of Hugging Face: cards with a front matter that it takes, and folders uploaded to a repository of one's own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from huggingface_hub import DatasetCard, EvalResult, HfApi, ModelCard, ModelCardData, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from handbook_ext.core.errors import UserError

Kind = Literal["model", "dataset"]
SECONDS = 10.0  # To reach the hub.
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Result:
    """A measure for the hub's index of results: on which data, by which metric, and its value."""

    data_id: str
    data_name: str
    metric: str
    value: float


def is_hub_id(name: str | None) -> bool:
    """Tells whether a name is `owner/name` of the hub, rather than a folder here."""
    return name is not None and _ID.fullmatch(name) is not None and not os.path.isdir(name)


def check_repo(repo: str) -> None:
    """Raises UserError for what is no `owner/name` of the hub."""
    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise UserError(
            f"--repo {repo}: is no repository of the hub ({error}); give owner/name, such as my-org/zephyr-selm"
        ) from None


def model_card(body: str, results: Sequence[Result], **fields: Any) -> str:
    """Returns a card with its front matter, read back as the hub's library reads it; `fields` are those of ModelCardData.

    Raises ValueError for fields that the library does not take, such as results without a model_name: a mistake of ours.
    """
    measured = [
        EvalResult(
            task_type="text-generation", dataset_type=each.data_id, dataset_name=each.data_name, metric_type=each.metric,
            metric_value=each.value, metric_name=each.metric,
        )
        for each in results
    ]  # fmt: skip
    data = ModelCardData(eval_results=measured or None, **fields)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n", ignore_metadata_errors=False))


def dataset_card(body: str, fields: Mapping[str, Any]) -> str:
    """Returns the card of a data set; `fields` are its front matter, with the `configs` by which `datasets` loads it."""
    import yaml  # noqa: PLC0415 - only here

    text: str = yaml.dump(dict(fields), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    return str(DatasetCard(f"---\n{text}---\n\n{body.strip()}\n", ignore_metadata_errors=False))


def upload(folder: Path, repo: str, kind: Kind, *, private: bool, message: str) -> str:
    """Returns the address of the repository that now has the folder's files; it is made where it is not there.

    Raises UserError where the hub is not reached or refuses, and for a repository that is there and open to all, or closed, where
    the other was asked for: nothing is then sent.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{repo}: HF_HUB_OFFLINE is set, so nothing was sent; unset it, or look with DRY=1 at what would go")
    api = HfApi()
    try:
        try:
            found = api.repo_info(repo, repo_type=kind, timeout=SECONDS)
        except RepositoryNotFoundError:
            api.create_repo(repo, repo_type=kind, private=private)
        else:
            if bool(found.private) != private:
                is_now, asked = ("private", "--public") if found.private else ("public", "--private")
                raise UserError(
                    f"{repo}: is {is_now} at the hub, and {asked} was asked for; nothing was sent: change one of the two"
                )
        sent = api.upload_folder(folder_path=folder, repo_id=repo, repo_type=kind, commit_message=message)
    except LocalTokenNotFoundError:
        raise UserError(f"{repo}: the hub wants a token; run `hf auth login`, or set HF_TOKEN") from None
    # Of a failed transfer the library makes a RuntimeError, of a reply that it cannot read a ValueError.
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        status = getattr(getattr(error, "response", None), "status_code", None)
        todo = (
            "check HF_TOKEN and your rights" if status in (401, 403) else "check the network, or look with DRY=1 at what would go"
        )
        raise UserError(f"{repo}: cannot be sent to {constants.ENDPOINT} ({reason}); {todo}") from None
    return str(sent.repo_url)
