"""What of a run stays at home when it is shared: paths of this machine, host names, and whatever looks like a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PATH, HOST = "<path>", "<host>"
"""What stands where a path's folders, or a host's name, were."""

# Texts of prompts and answers are data: what looks like a path there is the policy's, not this machine's.
TEXTS = {"rows", "decodings", "implicit", "answers", "training_pairs", "prompt", "text"}
# A folder and a name behind it, or nothing else than a name below the root; not in a URL, a date or `and/or`.
_ABSOLUTE = re.compile(
    r"(?<![\w.:/<>~-])(?:file://|~)?(?:/[\w.+@,=-]+)+/([\w.+@,=-]+)/?|^/([\w.+@,=-]+)$|\b[A-Za-z]:\\(?:[^\\\s]+\\)*([^\\\s]+)"
)
_ADDRESS = re.compile(r"^(https?://)(?:[^/@\s]*@)?[^/\s]+")
ADDRESSES = {"base_url"}  # Of a judge's endpoint: its host may be a machine of the author's.

_SECRETS = {
    "a token of the Hugging Face hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}\b",
    "a key of OpenAI or Anthropic": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}",
    "a key of AWS": r"\bAKIA[0-9A-Z]{16}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in a URL": r"\bhttps?://[^/\s:@]+:[^/\s:@]{3,}@",
}
_SIGNS = re.compile("|".join(f"(?P<s{place}>{sign})" for place, sign in enumerate(_SECRETS.values())))
_NAMES = re.compile(
    r"^(\.env.*|\.netrc|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519).*|credentials.*|.*\.(pem|key|pfx|p12|kdbx)|token)$"
)
_OF_ENVIRONMENT = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")


def without_paths(value: Any, key: str = "") -> Any:
    """Returns a nested value whose texts have no absolute path and no endpoint's host, of each path its last name alone.

    Texts of prompts and answers stay as they are.
    """
    if isinstance(value, dict):
        return {_bare(name): inner if name in TEXTS else without_paths(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key in ADDRESSES:
        value = _ADDRESS.sub(rf"\1{HOST}", value)
    return _bare(value)


def _bare(text: str) -> str:
    """Returns a text with the last name alone of each absolute path."""
    return _ABSOLUTE.sub(lambda match: f"{PATH}/{match[1] or match[2] or match[3]}", text)


def has_gaps(value: Any) -> bool:
    """Tells whether something was taken out of a nested value by `without_paths`."""
    if isinstance(value, dict):
        return any(has_gaps(name) or has_gaps(inner) for name, inner in value.items() if name not in TEXTS)
    if isinstance(value, list):
        return any(map(has_gaps, value))
    return isinstance(value, str) and (f"{PATH}/" in value or f"//{HOST}" in value)


def secrets_in(path: Path, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yields what in a file looks like a secret, with its line but without the secret; nothing is told of binary content.

    A name such as `id_rsa` or `.env` is one sign, the form of a key another, and so is the value of a variable of the environment
    whose name ends with KEY, TOKEN, SECRET or PASSWORD.
    """
    if _NAMES.match(path.name):
        yield f"{path.name} is called like a file of secrets"
    values = {text: name for name, text in environment.items() if _OF_ENVIRONMENT.search(name) and len(text) >= 8}
    with path.open("rb") as stream:
        if b"\0" in stream.read(4096):
            return
        stream.seek(0)
        for number, raw in enumerate(stream, start=1):
            line = raw.decode("utf-8", "replace")
            if match := _SIGNS.search(line):
                kind = next(name for name, place in zip(_SECRETS, range(len(_SECRETS)), strict=True) if match[f"s{place}"])
                yield f"{path.name}:{number} holds what looks like {kind}"
            yield from (f"{path.name}:{number} holds the value of {name}" for text, name in values.items() if text in line)


def home_paths(text: str, *folders: Path) -> str | None:
    """Returns the first of this machine's folders that a text names, None where it names none; `/` and `/tmp` are no folder."""
    spelt = {name for folder in folders for name in (str(folder.absolute()), str(folder.resolve()))}
    return next((name for name in sorted(spelt, key=len, reverse=True) if name.count("/") > 1 and name in text), None)
