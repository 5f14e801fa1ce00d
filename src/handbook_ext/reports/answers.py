"""What policies answered to held-out prompts, for a reader to see with their own eyes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from handbook_ext.core.records import Messages, OfflinePair
from handbook_ext.graph.rule import ROWS
from handbook_ext.reports.evaluations import Json, read_json
from handbook_ext.reports.trails import rows_about

SHOWN = 10  # Prompts: the first of the held-out ones, so that nobody has picked them.
EXTREMES = 5  # Of the most improved, and of the most worsened.
LONGEST = 1200  # Characters of a text.


def shown_answers(folder: Path, policies: Sequence[str], decoding: str) -> Json:
    """Returns held-out prompts of a run with the answers of policies under a decoding, each with its reward and tokens.

    `first` are the first ones; `improved` and `worsened` those whose reward changed most from the first policy to the last,
    the most changed first; `of` is how many there are. Texts are cut to `LONGEST` characters. Prompts that an older
    evaluation does not hold are left out, and from the changes those without a readable verdict.
    """
    rows = {name: read_json(folder / name / "eval.json")["decodings"][decoding]["rows"] for name in policies}
    by_prompt = {name: {row["prompt_id"]: row for row in found} for name, found in rows.items()}
    names = [row["prompt_id"] for row in rows[policies[0]] if "prompt" in row]
    changes = {name: change for name in names if (change := _change(by_prompt, policies, name)) is not None}
    # Stable: of equal changes the first prompts.
    risen, fallen = (sorted(changes, key=lambda name: sign * changes[name]) for sign in (-1, 1))
    chosen = {
        "first": names[:SHOWN],
        "improved": [name for name in risen if changes[name] > 0][:EXTREMES],
        "worsened": [name for name in fallen if changes[name] < 0][:EXTREMES],
    }
    conversations = _conversations(folder, {name for each in chosen.values() for name in each})

    def shown(name: str) -> Json:
        """Returns a prompt with the answers of the policies."""
        found = [by_prompt[policy][name] for policy in policies]
        return {
            "prompt_id": name, "change": changes.get(name),
            "prompt": short(spoken(conversations[name]) if name in conversations else found[0]["prompt"]),
            "answers": [
                {"policy": policy, "reward": row["reward"], "tokens": row["tokens"], "text": short(row["text"]),
                 "cut": row.get("finish_reason") == "length"}
                for policy, row in zip(policies, found, strict=True)
            ],
        }  # fmt: skip

    return {"of": len(names), **{what: [shown(name) for name in each] for what, each in chosen.items()}}


def short(text: str, longest: int = LONGEST) -> str:
    """Returns a text, or its beginning with an ellipsis."""
    return text if len(text) <= longest else f"{text[:longest].rstrip()} …"


def spoken(messages: Messages) -> str:
    """Returns a prompt as text; one of several turns says whose each is."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _change(by_prompt: dict[str, dict[str, Json]], policies: Sequence[str], name: str) -> float | None:
    """Returns by how much the reward of a prompt rose from the first policy to the last, None without two verdicts."""
    first, last = (by_prompt[policy].get(name, {}).get("reward") for policy in (policies[0], policies[-1]))
    return None if first is None or last is None or len(policies) < 2 else float(last) - float(first)


def _conversations(folder: Path, names: set[str]) -> dict[str, Messages]:
    """Returns the whole prompts, of which an evaluation holds the last turn; none where the rows are not there any more."""
    rows = folder / ROWS / "test.jsonl"
    found = rows_about(rows, OfflinePair, names) if rows.is_file() else {}
    return {name: each[0][1].prompt for name, each in found.items() if each}
