"""AlpacaEval 2 by the package alpaca_eval: a judge's verdicts against a baseline, the win rate, and the length-controlled one.

What a verdict, a win rate and a fit are is the package's (`alpaca_package.py`); here are the judge's endpoint, what is kept of
it, and what is said where there is no value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from handbook_ext.core.records import Messages
from handbook_ext.evaluation import alpaca_package as package
from handbook_ext.evaluation.alpaca_package import Row
from handbook_ext.judging.choice_client import Choice, ChoiceClient
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.judge_client import MINUTE
from handbook_ext.judging.verdict_cache import VerdictCache

HUB = "tatsu-lab/alpaca_eval"
SECONDS = 5.0  # To reach the hub: a machine that has none should not wait for it.
INSTRUCTIONS = 805
INSTRUCTIONS_SHA256 = "c5770d532bf3f697768ed9a57a05d8b58b2617321ca65070620f059676e7c99a"
"""AlpacaEval's own instructions in their order, as `json.dumps` writes their list: length control knows no others."""


@dataclass(frozen=True)
class Outputs:
    """A model's answers to the instructions of a set, in their order."""

    name: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Measure:
    """A value with its standard error over n verdicts; `missing` verdicts could not be read. `not_run` says why there is none."""

    value: float | None
    standard_error: float | None
    n: int
    missing: int
    unit: str = "%"
    not_run: str | None = None


@dataclass(frozen=True)
class Matrix:
    """What each policy (row) wins against each other one (column), in %, with standard errors and numbers of unreadable verdicts.

    `measure` is lc_win_rate, or win_rate with the reason in `not_run` where length control cannot be had for every pair.
    """

    names: tuple[str, ...]
    measure: str
    values: list[list[float | None]]
    standard_errors: list[list[float | None]]
    missing: list[list[int]]
    not_run: str | None


class AlpacaJudge:
    """The package's annotator over an endpoint that speaks OpenAI's protocol and gives log-probabilities.

    Of the endpoint, temperature and max_new_tokens play no part, since the package's configuration states them, but a temperature
    of None (a model that takes none) leaves it out. Replies are kept in the cache as they come: a repeat asks for the rest alone.
    """

    def __init__(self, model: str, endpoint: Endpoint, *, cache: VerdictCache, longest_pause: float = MINUTE) -> None:
        """Takes the model's name at the endpoint, and where replies are kept."""
        self.model, self.endpoint, self.cache = model, endpoint, cache
        self.client = ChoiceClient(model, endpoint, cache, {}, longest_pause=longest_pause)
        self.unreadable = 0

    def annotate(self, instructions: Sequence[str], ours: Outputs, baseline: Outputs) -> list[Row]:
        """Returns the package's annotation of each pair, in the order of the instructions; None is an unreadable preference.

        Raises UserError where the endpoint fails; what it has replied is kept.
        """
        pairs = [
            {
                "instruction": instruction, "output_1": theirs, "generator_1": baseline.name, "output_2": own,
                "generator_2": ours.name,
            }
            for instruction, theirs, own in zip(instructions, baseline.texts, ours.texts, strict=True)
        ]  # fmt: skip
        rows = package.annotated(pairs, self.model, self._choices)
        self.unreadable += _unreadable(rows)
        return rows

    def facts(self) -> dict[str, Any]:
        """Returns what a manifest records: replies, tokens and cost (USD) of the stage, and what this process asked and read."""
        totals = self.cache.totals()
        cost = self.endpoint.cost(totals["prompt_tokens"], totals["completion_tokens"])
        own = {
            "asked": self.client.asked, "from_cache": self.client.from_cache, "unreadable": self.unreadable,
            "refused": self.client.refused, "unusable_tries": len(self.client.unusable),
            "unusable_tokens": sum(self.client.unusable), "annotator": package.annotator_name(self.model),
        }  # fmt: skip
        return {"judge": {**totals, "cost_usd": cost, **own}}

    def _choices(self, questions: list[Messages], options: dict[str, Any]) -> list[Choice | None]:
        """Returns the first choice of each reply; the options are those of the package's configuration."""
        if self.endpoint.temperature is None:
            options = {name: value for name, value in options.items() if name not in ("temperature", "top_p")}
        self.client.options = {self.endpoint.limit_name if name == "max_tokens" else name: options[name] for name in options}
        return self.client.choices(questions)


def win_rate(rows: Sequence[Row]) -> Measure:
    """Returns the win rate of output_2 over the verdicts that can be read, as the package's leaderboard has it."""
    missing = _unreadable(rows)
    if missing == len(rows):
        return _nothing(rows, f"none of {len(rows)} verdicts can be read")
    found = package.win_rate(rows)
    error = found["standard_error"] if len(rows) - missing > 1 else None
    return Measure(found["win_rate"], error, int(found["n_total"]), missing)


def length_controlled(rows: Sequence[Row], gamed: Path | None = None, places: Sequence[int] | None = None) -> Measure:
    """Returns the length-controlled win rate of output_2, fitted by the package on these verdicts.

    gamed: the hub's df_gamed.csv, None for the hub itself. places: the numbers of the rows' instructions in AlpacaEval's own set,
    by which the package knows their difficulty; None where the rows are that whole set in its order. Where the value cannot be
    had it is None, with the reason. Raises UserError for a file that is not df_gamed.csv.
    """
    missing = _unreadable(rows)
    if missing == len(rows):
        return _nothing(rows, f"none of {len(rows)} verdicts can be read")
    if places is None and (reason := _foreign(rows)):
        return _nothing(rows, reason)
    if len({len(row["output_1"]) - len(row["output_2"]) for row in rows}) == 1 and not _same_model(rows):
        return _nothing(rows, "all answers differ from the baseline's by one number of characters: there is no length to control")
    path, reason = (gamed, "") if gamed is not None else _from_hub(package.GAMED)
    if path is None:
        return _nothing(rows, f"{package.GAMED}, which the fit needs, is not given and not on the hub ({reason})")
    found = package.length_controlled(rows, range(len(rows)) if places is None else places, path)
    return Measure(found["length_controlled_winrate"], found["lc_standard_error"], len(rows) - missing, missing)


def mean_length(texts: Iterable[str]) -> Measure:
    """Returns the mean length of a model's outputs in characters, cut to a whole number as on the leaderboard."""
    lengths = [len(text) for text in texts]
    return Measure(float(sum(lengths) // len(lengths)), None, len(lengths), 0, "characters")


def pairwise_matrix(
    judge: AlpacaJudge, instructions: Sequence[str], policies: Sequence[Outputs], *, gamed: Path | None = None,
    places: Sequence[int] | None = None,
) -> Matrix:  # fmt: skip
    """Returns what each policy wins against each other one as the baseline (SELM, figure 2).

    Each couple is annotated once, the later policy being the baseline; the cell across the diagonal is 100 less the value, as in
    the paper's figure. The plain win rate stands in all cells where one couple has no length-controlled one.
    """
    annotated = {
        (row, column): judge.annotate(instructions, policies[row], policies[column])
        for row, column in combinations(range(len(policies)), 2)
    }
    controlled = {couple: length_controlled(rows, gamed, places) for couple, rows in annotated.items()}
    reason = next((each.not_run for each in controlled.values() if each.value is None), None)
    cells = controlled if reason is None else {couple: win_rate(rows) for couple, rows in annotated.items()}
    size = range(len(policies))
    filled = {**{(each, each): Measure(50.0, 0.0, len(instructions), 0) for each in size}, **cells}
    filled |= {(column, row): replace(cell, value=_rest(cell.value)) for (row, column), cell in cells.items()}
    return Matrix(
        tuple(each.name for each in policies), "lc_win_rate" if reason is None else "win_rate",
        [[filled[row, column].value for column in size] for row in size],
        [[filled[row, column].standard_error for column in size] for row in size],
        [[filled[row, column].missing for column in size] for row in size],
        reason,
    )  # fmt: skip


def _rest(value: float | None) -> float | None:
    """Returns what the other one wins, in %."""
    return None if value is None else 100.0 - value


def _unreadable(rows: Sequence[Row]) -> int:
    """Returns how many preferences are missing."""
    return sum(row["preference"] is None for row in rows)


def _same_model(rows: Sequence[Row]) -> bool:
    """Tells whether a model is compared with itself, which the package calls 50 %."""
    return bool(rows[0]["generator_1"] == rows[0]["generator_2"])


def _nothing(rows: Sequence[Row], reason: str) -> Measure:
    """Returns a measure without a value."""
    missing = _unreadable(rows)
    return Measure(None, None, len(rows) - missing, missing, not_run=reason)


def _foreign(rows: Sequence[Row]) -> str:
    """Returns why these instructions are not AlpacaEval's own in their order, nothing where they are."""
    written = json.dumps([row["instruction"] for row in rows])
    if hashlib.sha256(written.encode()).hexdigest() == INSTRUCTIONS_SHA256:
        return ""
    return (
        f"length control knows the difficulty of AlpacaEval's own {INSTRUCTIONS} instructions alone; these {len(rows)} are not "
        "they, or not in their order"
    )


@cache  # A matrix asks for each couple, and a hub that is away takes its time to say so.
def _from_hub(name: str) -> tuple[Path | None, str]:
    """Returns a file of the hub's data set, from the cache where the hub is switched off, or None; and why there is none."""
    try:
        return Path(hf_hub_download(HUB, name, repo_type="dataset", etag_timeout=SECONDS)), ""
    except LocalEntryNotFoundError:
        return None, "HF_HUB_OFFLINE is set, and the cache does not have it" if constants.HF_HUB_OFFLINE else "the hub is gone"
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        return None, " ".join((str(error).strip() or type(error).__name__).splitlines()[:1])
