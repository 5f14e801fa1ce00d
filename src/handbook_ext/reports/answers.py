"""What policies answered to a few held-out prompts, for a reader to see with their own eyes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHOWN = 3  # Prompts: the first of the held-out ones, so that nobody has picked them.
LONGEST = 1200  # Characters of a text.


def shown_answers(folder: Path, policies: list[str], decoding: str) -> list[dict[str, Any]]:
    """Returns the first held-out prompts of a run with the answers of policies under a decoding, each with reward and tokens.

    Texts are cut to `LONGEST` characters. Prompts that an older evaluation does not hold are left out.
    """
    rows = {
        name: json.loads((folder / name / "eval.json").read_text(encoding="utf-8"))["decodings"][decoding]["rows"]
        for name in policies
    }
    first = [row for row in rows[policies[0]] if "prompt" in row][:SHOWN]
    by_prompt = {name: {row["prompt_id"]: row for row in found} for name, found in rows.items()}
    return [
        {
            "prompt": _short(each["prompt"]),
            "answers": [
                {"policy": name, "reward": row["reward"], "tokens": row["tokens"], "lines": _short(row["text"]).splitlines()}
                for name in policies
                for row in [by_prompt[name][each["prompt_id"]]]
            ],
        }
        for each in first
    ]


def _short(text: str) -> str:
    """Returns a text, or its beginning with an ellipsis."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} …"
