"""Tables over many recipes and seeds: what they list, and the numbers of their rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair, read_rows
from handbook_ext.objectives.metrics import Interval, Scores, comparable, compare_scores, hierarchical_interval, share_prompts
from handbook_ext.recipes.settings import Section
from handbook_ext.recipes.yaml_tree import read_yaml
from handbook_ext.reports.run_report import read_evaluation
from handbook_ext.selection.sera import jaccard

TABLES = Path("recipes/tables")
VERDICTS = {1: "agrees", 0: "cannot tell", -1: "disagrees"}


class TableRow(Section):
    """A row: a recipe's policy at some iteration, with what the paper says of the same method."""

    name: str = Field(description="what the paper calls it")
    recipe: str = Field(description="the recipe to run")
    policy: str | None = Field(None, description="sft or iter<N>; null is the recipe's last iteration")
    x: float | None = Field(None, description="place on the axis of a sweep")
    paper: str = Field("-", description="the paper's number for this row")


class Claim(Section):
    """A claim: one row does better than another."""

    better: str
    worse: str
    by: Literal["win rate", "flipped labels"] = Field(
        "win rate", description="wins of one over the other; or a smaller share of flipped labels among its offline pairs"
    )
    words: str = Field(description="the claim in words")


class Table(Section):
    """A table of a paper at tiny scale."""

    title: str
    source: str = Field(description="where the paper has it, and what its column shows")
    paper_column: str = Field("paper", description="head of the paper's column")
    rows: list[TableRow] = Field(min_length=1)
    claims: list[Claim] = Field(default=[])
    similarity: list[str] = Field(
        default=[], max_length=2,
        description="iterations whose kept offline pairs are compared: the last between the rows, both within each row",
    )  # fmt: skip
    axis: str | None = Field(None, description="name of the rows' x")
    differences: list[str] = Field(default=[], description="two rows whose implicit rewards are compared, or none")

    @model_validator(mode="after")
    def _named(self) -> Table:
        """Raises where rows share a name, or one is mentioned that there is not."""
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two rows are called '{twice[0]}'; rename one")
        if len(self.differences) not in (0, 2):
            raise ValueError(f"differences are of two rows, not of {len(self.differences)}")
        for mentioned in [*self.differences, *(side for claim in self.claims for side in (claim.better, claim.worse))]:
            if mentioned not in names:
                raise ValueError(f"no row is called '{mentioned}'; rows: {', '.join(names)}")
        return self


@dataclass(frozen=True)
class Measured:
    """A row's policy over its seeds: scores by decoding, those of the first policy, and single numbers per seed.

    `judges` are those of the rewards; `swapped` tells of each offline pair that was trained on, by its prompt's id, whether
    its label is flipped.
    """

    row: TableRow
    policy: str
    scores: dict[str, list[Scores]]
    first: dict[str, list[Scores]]
    numbers: dict[str, list[float]]
    judges: list[tuple[int, str, str]]
    swapped: list[dict[str, bool]]


def read_table(name: str) -> Table:
    """Returns a table by name; a UserError names those there are, or what is wrong in its file."""
    path = TABLES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in TABLES.glob("*.yaml")))
        raise UserError(f"no table is called '{name}'; in {TABLES} there are: {known}")
    try:
        table = Table.model_validate(read_yaml(path).values)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(f"{path}: {where}{first['msg'].removeprefix('Value error, ')}; correct the table") from None
    return table


def measure(row: TableRow, folders: Sequence[Path], start: str, last: str) -> Measured:
    """Returns what a row's runs left behind, one folder per seed; the recipe goes from policy `start` to iteration `last`.

    Raises UserError where a policy is not measured as its start is.
    """
    policy = row.policy or last
    scores: dict[str, list[Scores]] = {}
    first: dict[str, list[Scores]] = {}
    numbers: dict[str, list[float]] = {}
    judges, swapped = [], []
    for folder in folders:
        (ours, judge), (theirs, other) = (read_evaluation(folder / name / "eval.json") for name in (policy, start))
        if judge != other or not comparable(ours, theirs):
            raise UserError(f"{folder}: {policy} has not the judge, prompts and decodings of {start}; evaluate both alike")
        for found, read in ((scores, ours), (first, theirs)):
            for decoding, one in read.items():
                found.setdefault(decoding, []).append(one)
        judges.append(judge)
        pairs_file = folder / policy / "pairs.jsonl"
        pairs = read_rows(pairs_file, PreferencePair) if pairs_file.is_file() else []
        for name, value in _numbers(folder, policy, pairs).items():
            numbers.setdefault(name, []).append(value)
        kept = {pair.prompt_id: pair.swapped for pair in pairs if pair.chosen_origin == "offline"}
        swapped += [kept] if kept else []
    return Measured(row, policy, scores, first, numbers, judges, swapped)


def _numbers(folder: Path, policy: str, pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Returns the single numbers of one seed: correlations and distance of the implicit reward, share of on-policy chosen."""
    implicit = json.loads((folder / policy / "eval.json").read_text()).get("implicit") or {}
    names = ("correlation_reward", "rank_correlation_reward", "correlation_tokens", "rank_correlation_tokens", "kl")
    found = {name: implicit[name] for name in names if implicit.get(name) is not None}
    if pairs:
        found["on_policy"] = fmean(pair.chosen_origin == "on_policy" for pair in pairs)
    return found


def summarise_row(measured: Measured, **bootstrap: Any) -> dict[str, Any]:
    """Returns a row's numbers: rewards, tokens, win rates and shares with intervals, others as mean and range of seeds."""
    told: dict[str, Any] = {"name": measured.row.name, "recipe": measured.row.recipe, "policy": measured.policy, "decodings": {}}
    told |= {"paper": measured.row.paper, "x": measured.row.x}
    for decoding, scores in measured.scores.items():
        crossed = share_prompts(scores)
        told["decodings"][decoding] = {
            "reward": hierarchical_interval([one.rewards for one in scores], crossed=crossed, **bootstrap),
            "tokens": hierarchical_interval([one.tokens for one in scores], crossed=crossed, **bootstrap),
            "win_rate": compare_scores(scores, measured.first[decoding], **bootstrap)["win_rate"],
        }
    for name, values in measured.numbers.items():
        told[name] = Interval(fmean(values), min(values), max(values))
    if measured.swapped:
        told["swapped_kept"] = hierarchical_interval([list(flags.values()) for flags in measured.swapped], **bootstrap)
    return told


def judge_claim(claim: Claim, rows: dict[str, Measured], decoding: str, **bootstrap: Any) -> dict[str, Any]:
    """Returns what a claim is judged by, and whether its interval agrees, disagrees or says neither.

    It is the win rate between the two rows, or by how much the first row's share of flipped labels is above the second's.
    There is no win rate where another judge marked the other row, or on other prompts.
    """
    told = {"words": claim.words, "by": claim.by, "better": claim.better, "worse": claim.worse}
    better, worse = rows[claim.better], rows[claim.worse]
    if claim.by == "flipped labels":
        more = flip_rate_difference(better.swapped, worse.swapped, **bootstrap)
        return told | {"difference": more, "verdict": VERDICTS[-more.side(0)]}
    matched = zip(better.scores[decoding], worse.scores[decoding], strict=True)
    if better.judges != worse.judges or not all(comparable({decoding: ours}, {decoding: theirs}) for ours, theirs in matched):
        return told | {"win_rate": None, "verdict": "has no answer: the two are not judged by the same model on the same prompts"}
    won = compare_scores(better.scores[decoding], worse.scores[decoding], **bootstrap)["win_rate"]
    return told | {"win_rate": won, "verdict": VERDICTS[won.side(0.5)]}


def flip_rate_difference(ours: Sequence[dict[str, bool]], theirs: Sequence[dict[str, bool]], **bootstrap: Any) -> Interval:
    """Returns our share of flipped labels less theirs, in [-1, 1], with its interval over seeds and pairs.

    Both keep some of the same pairs, so a pair that both keep counts on both sides of the difference. One dictionary per
    seed, from the prompt's id to whether the label is flipped. Raises UserError where a row keeps no offline pairs.
    """
    if not ours or len(ours) != len(theirs):
        raise UserError("flipped labels are compared between rows that train on offline pairs; compare these by win rate")
    groups = []
    for mine, other in zip(ours, theirs, strict=True):
        pairs = mine | other
        share, against = fmean(mine.values()), fmean(other.values())
        # Each side is centred on its share, or the drawn number of pairs that it keeps would widen the interval.
        groups.append([
            share - against
            + len(pairs) * ((name in mine) * (flipped - share) / len(mine) - (name in other) * (flipped - against) / len(other))
            for name, flipped in pairs.items()
        ])  # fmt: skip
    return hierarchical_interval(groups, **bootstrap)


def kept_ids(folder: Path, iteration: str) -> set[str]:
    """Returns the prompt ids of the offline pairs that an iteration trained on."""
    rows = read_rows(folder / iteration / "pairs.jsonl", PreferencePair)
    return {pair.prompt_id for pair in rows if pair.chosen_origin == "offline"}


def overlap_between_rows(folders: dict[str, Sequence[Path]], iteration: str) -> dict[tuple[str, str], float]:
    """Returns the Jaccard similarity of the kept offline pairs of every two rows, a mean over seeds."""
    kept = {name: [kept_ids(folder, iteration) for folder in each] for name, each in folders.items()}
    return {
        (ours, theirs): fmean(jaccard(a, b) for a, b in zip(kept[ours], kept[theirs], strict=True))
        for ours, theirs in combinations_with_replacement(kept, 2)
    }


def overlap_between_iterations(folders: Sequence[Path], iterations: Sequence[str]) -> float:
    """Returns the Jaccard similarity of the offline pairs that one recipe kept in two iterations, a mean over seeds."""
    return fmean(jaccard(*(kept_ids(folder, iteration) for iteration in iterations)) for folder in folders)


def reward_differences(ours: Path, theirs: Path, side: str) -> list[float]:
    """Returns, sorted, by how many nats our policy's log-ratio to the first policy is above theirs, text by text.

    `side` is chosen or rejected: the same held-out texts for both (SELM, figure 4); or sample: each policy's own (figure 5).
    """
    values = []
    for path in (ours, theirs):
        rows = (json.loads(path.read_text()).get("implicit") or {"rows": []})["rows"]
        values.append({row["prompt_id"]: row["log_ratio"] for row in rows if row["side"] == side})
    return sorted(values[0][name] - values[1][name] for name in values[0].keys() & values[1].keys())
