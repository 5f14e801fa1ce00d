"""What an iteration's files say of single prompts: offline answers, samples, verdicts, pairs; and who of them won."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from handbook_ext.core.artifacts import manifest_path, read_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import Row
from handbook_ext.core.records import Completion, OfflinePair, PreferencePair, Ranking
from handbook_ext.reports.evaluations import Json
from handbook_ext.selection.rules import RULES

R = TypeVar("R", bound=Row)

Numbered = tuple[int, R]
"""A row with its line in its file, from 1."""


@dataclass(frozen=True)
class Trail:
    """One prompt in one iteration: what the data, the sampler, the ranker and the selection left of it.

    `starts_from` names the policy that wrote the samples; `rule` is select.rule. `pairs` may be two: SeRA can keep a prompt's
    offline pair and add one of its samples.
    """

    iteration: str
    starts_from: str
    rule: str
    offline: OfflinePair | None = None
    samples: list[Completion] = field(default_factory=list)
    ranking: Ranking | None = None
    pairs: list[Numbered[PreferencePair]] = field(default_factory=list)


def rows_about(path: Path, kind: type[R], prompt_ids: Collection[str]) -> dict[str, list[Numbered[R]]]:
    """Returns the rows of a file that belong to these prompts, by prompt id; raises UserError at one that is not as it should be.

    Other rows are not parsed: their prompt id is not in their text, which takes a fraction of the time.
    """
    # As json writes it, with its quotes: an id that is the beginning of another one is not taken for it.
    needles = {json.dumps(each, ensure_ascii=False): each for each in prompt_ids}
    found: dict[str, list[Numbered[R]]] = {each: [] for each in prompt_ids}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not any(needle in line for needle in needles):
                continue
            try:
                row = json.loads(line)
                if row["prompt_id"] in found:
                    found[row["prompt_id"]].append((number, kind.model_validate(row)))
            except (ValueError, KeyError, TypeError, ValidationError) as error:
                fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
                raise UserError(f"{path}:{number}: is not what its stage wrote ({fault}); make the file again") from None
    return found


def files_of_selection(folder: Path) -> dict[str, list[Path]]:
    """Returns the files that an iteration's pairs were made from, by role: rows, rankings, completions, log_probs.

    From the manifest of the pairs, and for the samples of judged prompts from that of the rankings: what lies in the folder
    may be of another selection. A file that was deleted since is left out.
    """
    stated = dict((read_manifest(folder / "pairs.jsonl")["settings"] or {}).get("inputs", {}))
    rankings = folder / "rankings.jsonl"
    if "rankings" in stated and manifest_path(rankings).is_file() and "completions.jsonl" in read_manifest(rankings)["inputs"]:
        stated.setdefault("completions", "completions.jsonl")
    roles = {role: [names] if isinstance(names, str) else names for role, names in stated.items()}
    paths = {role: [(folder / name).resolve() for name in names] for role, names in roles.items()}
    return {role: [path for path in each if path.exists()] for role, each in paths.items()}


def read_trails(folder: Path, prompt_ids: Collection[str]) -> dict[str, Trail]:
    """Returns what an iteration's files say of these prompts, by prompt id; its pairs must be finished."""
    settings = read_manifest(folder / "pairs.jsonl")["settings"] or {}
    files = files_of_selection(folder)

    def about(role: str, kind: type[R]) -> dict[str, list[Numbered[R]]]:
        """Returns the rows of the one file of a role; none where the selection did not read it."""
        return rows_about(files[role][0], kind, prompt_ids) if files.get(role) else {}

    offline, samples, rankings = about("rows", OfflinePair), about("completions", Completion), about("rankings", Ranking)
    pairs = rows_about(folder / "pairs.jsonl", PreferencePair, prompt_ids)
    return {
        each: Trail(
            folder.name, str(settings.get("policy", "")), str(settings.get("select", {}).get("rule", "")),
            next((row for _, row in offline.get(each, [])), None), [row for _, row in samples.get(each, [])],
            next((row for _, row in rankings.get(each, [])), None), pairs[each],
        )
        for each in prompt_ids
    }  # fmt: skip


def candidates(trail: Trail) -> list[Json]:
    """Returns all completions of a prompt in an iteration, samples first, each with what the files say of it.

    `roles` are those in the prompt's pairs: chosen, rejected, explored. `score` and `rank` are the ranker's, `data_score` the
    data's own; None where there is none.
    """
    sampled = {row.sample: row for row in trail.samples}
    if trail.ranking is not None:
        found = [
            _candidate(each.origin, each.sample, each.text, each.completion_id)
            | {"score": None if each.failed else each.score, "rank": None if each.failed else each.rank}
            | {"truncated": each.truncated, "failed": each.failed}
            for each in trail.ranking.candidates
        ]
    else:
        found = [_candidate("on_policy", row.sample, row.text, row.completion_id) for row in trail.samples]
    for each in found:
        if (row := sampled.get(each["sample"])) is not None and each["origin"] == "on_policy":
            each |= {"tokens": row.completion_tokens, "finish_reason": row.finish_reason, "seed": row.seed}
    if trail.offline is not None:
        _add_offline(found, trail.offline)
    for _, pair in trail.pairs:
        _add_roles(found, pair)
    return [each | {"label": _label(each, trail)} for each in found]


def why_it_won(trail: Trail, pair: PreferencePair, among: list[Json]) -> str:
    """Returns in words which rule made a pair, and what its two completions had that the rule looks at."""
    sides = []
    for side in ("chosen", "rejected"):
        origin, name = getattr(pair, f"{side}_origin"), getattr(pair, f"{side}_id")
        own = [each for each in among if (each["origin"], each["completion_id"]) == (origin, name)]
        if not own:
            sides.append(f"a completion that is {origin.replace('_', '-')}")
            continue
        facts = [f"{words} {own[0][key]:.4g}" for key, words in _FACTS.items() if own[0].get(key) is not None]
        sides.append(own[0]["label"] + (f" ({', '.join(facts)})" if facts else ""))
    rule = RULES.get(trail.rule)
    words = f"{trail.rule}: {rule.summary}" if rule else trail.rule or "rule not recorded"
    margin = f"; implicit reward margin {pair.margin:.4g}" if pair.margin is not None else ""
    # A swapped label is repeated by the pair: what the data rejected stands here as chosen.
    swapped = "; label noise had swapped this label, so the data preferred the other" if pair.swapped else ""
    return f"{sides[0]} over {sides[1]}, by {words}{margin}{swapped}"


_FACTS = {"rank": "rank", "score": "score", "data_score": "data's score", "implicit": "implicit reward"}


def _candidate(origin: str, sample: int | None, text: str, name: str) -> Json:
    """Returns a candidate of which nothing is known yet but where it comes from."""
    nothing = dict.fromkeys(("score", "rank", "data_score", "tokens", "finish_reason", "seed", "side"))
    about = {"origin": origin, "sample": sample, "text": text, "completion_id": name, "truncated": False, "failed": False}
    return about | nothing | {"roles": []}


def _add_offline(found: list[Json], row: OfflinePair) -> None:
    """Adds the data's own answers with their scores, or marks them where they were judged; then other rated answers."""
    judged = [each for each in found if each["origin"] == "offline"]
    sides = [("chosen", row.chosen_answer, row.score_chosen), ("rejected", row.rejected_answer, row.score_rejected)]
    for place, (side, answer, score) in enumerate(sides):
        # A ranking has the offline pair last, chosen before rejected, also where the two are one text.
        own = judged[place] if place < len(judged) else _candidate("offline", None, answer.text, answer.completion_id)
        own |= {"side": side, "data_score": score}
        if place >= len(judged):
            found.append(own)
    known = {each["completion_id"] for each in found if each["origin"] == "offline"}
    for rated in row.answers:
        if rated.completion_id not in known:
            found.append(_candidate("offline", None, rated.text, rated.completion_id) | {"data_score": rated.score})


def _add_roles(found: list[Json], pair: PreferencePair) -> None:
    """Marks the candidates that are chosen, rejected and explored in a pair; of equal texts the first."""
    wanted = [("chosen", pair.chosen_id, pair.chosen_origin), ("rejected", pair.rejected_id, pair.rejected_origin)]
    wanted += [("explored", pair.explore_id, "on_policy")] if pair.explore_id is not None else []
    for role, name, origin in wanted:
        own = [each for each in found if (each["completion_id"], each["origin"]) == (name, origin)]
        if own and role not in own[0]["roles"]:
            own[0]["roles"].append(role)


def _label(each: Json, trail: Trail) -> str:
    """Returns what a candidate is called."""
    if each["origin"] == "on_policy":
        return f"sample {each['sample']} of {trail.starts_from or 'the policy'}"
    # What noise swapped is called as it is labelled now.
    swapped = " (label swapped)" if trail.offline is not None and trail.offline.swapped else ""
    return f"the data's {each['side']}{swapped}" if each["side"] else "another answer of the data"
