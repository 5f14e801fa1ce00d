"""How far the intervals of a finished table or report of seeds reach: what SEEDS=auto looks at, and all that it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from handbook_ext.reports.evaluations import Json


class Width(NamedTuple):
    """How far an interval reaches to either side of its value, as a share, and what it is of."""

    reach: float
    words: str


def widths(summary: Json) -> list[Width]:
    """Returns how far each interval of a summary.json reaches that its verdicts are read from; [] where there is none.

    Of a table those of its claims, and where it has none those of its rows' win rates against the start; of a report of seeds
    the win rate of each recipe's last policy against the start and against that of the recipes beside it, by the main decoding.
    The wider of the bootstrap and of Student's t counts. Values and verdicts are not looked at: whoever stops once a verdict is
    there finds differences where there are none.
    """
    return [Width(_reach(found), words) for words, found in (_of_table(summary) if "claims" in summary else _of_report(summary))]


def _of_table(summary: Json) -> Iterator[tuple[str, Json]]:
    """Yields the intervals of a table with what they are of."""
    claims = [(each["words"], each.get("win_rate") or each.get("difference")) for each in summary["claims"]]
    if claims:
        yield from ((words, found) for words, found in claims if found)
        return
    for row in summary["rows"]:
        decodings = row["decodings"]
        yield row["name"], decodings[min(decodings, key=lambda name: name == "greedy")]["win_rate"]


def _of_report(summary: Json) -> Iterator[tuple[str, Json]]:
    """Yields the intervals of a report of seeds with what they are of."""
    primary = summary["primary"]
    for recipe in summary["recipes"]:
        last = recipe["policies"][-1]
        if found := last[primary]["vs_start"]:
            yield f"{recipe['recipe']} {last['policy']} against the start", found["win_rate"]
    for other in summary["beside"]:
        if primary in other["decodings"]:
            yield f"{summary['recipes'][0]['recipe']} against {other['recipe']}", other["decodings"][primary]["win_rate"]


def _reach(found: Json) -> float:
    """Returns half the width of an interval, of the wider of its two."""
    return max((found["high"] - found["low"]) / 2, found["seeds"] or 0.0)
