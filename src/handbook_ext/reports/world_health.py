"""What the tiny world's true reward says of an iteration: how much its samples explore, and how many of its pairs are right.

Made from the texts alone: no model computes anything for it. Only the data set `tiny_world` has a true reward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from handbook_ext.core.artifacts import manifest_path
from handbook_ext.core.errors import UserError
from handbook_ext.core.jsonl import read_rows
from handbook_ext.core.records import Completion, Messages, PreferencePair
from handbook_ext.core.stage_settings import read_settings
from handbook_ext.data.tiny_world import GUESTS, TOPICS, Request, best_answer, best_closing, parse_request, true_reward
from handbook_ext.graph.stages import DataStage
from handbook_ext.reports.health import Health, files_of

Found = set[tuple[str, str]]
"""The guests and topics whose best closing a run has sampled."""


def in_tiny_world(run: Path) -> bool:
    """Tells whether a run's data are those of the tiny world."""
    settings = run / DataStage.file
    return settings.is_file() and (read_settings(settings).get("data") or {}).get("dataset") == "tiny_world"


def world_health(run: Path, iterations: Sequence[str]) -> dict[str, Health]:
    """Returns the figures of a run's first iterations, in their order, by name; none where its data have no true reward.

    The order matters: what the run has sampled so far is counted on. An iteration whose pairs are not made is left out.
    """
    found: Found = set()
    figures: dict[str, Health] = {}
    for name in iterations if in_tiny_world(run) else ():
        if not manifest_path(run / name / "pairs.jsonl").is_file():
            continue
        files = files_of(run / name)
        figures[name] = correctness(read_rows(files["pairs"], PreferencePair))
        if "completions" in files:
            figures[name] |= exploration(read_rows(files["completions"], Completion), found)
    return figures


def exploration(completions: Sequence[Completion], found: Found) -> Health:
    """Returns how far samples reach in the tiny world; adds the closings that they find to `found`.

    `best_closings`: share of samples with the way and the place of serving that suit the request; `prompts_best_closed`: of
    prompts with one such sample at least; `closings_found`: of the world's closings, one for each guest and topic, those in
    `found` by now. `sampled_reward`, `best_sample_reward`, `best_possible_reward`: mean true reward of the samples, of each
    prompt's best sample, and of the best answer that there is; what lies between the first two is the most that selection
    among own samples can gain. Raises UserError for a prompt that is no request of the world.
    """
    closed: dict[str, list[bool]] = defaultdict(list)
    rewards: dict[str, list[float]] = defaultdict(list)
    possible = {}
    for row in completions:
        asked = _asked(row.prompt)
        request = _request(row.prompt_id, asked)
        closed[row.prompt_id].append(best := best_closing(asked, row.text))
        rewards[row.prompt_id].append(true_reward(asked, row.text))
        possible[row.prompt_id] = asked
        if best:
            found.add((request.guest, request.topic))
    return {
        "best_closings": fmean(each for prompt in closed.values() for each in prompt),
        "prompts_best_closed": fmean(any(prompt) for prompt in closed.values()),
        "closings_found": len(found) / (len(GUESTS) * len(TOPICS)),
        "sampled_reward": fmean(each for prompt in rewards.values() for each in prompt),
        "best_sample_reward": fmean(max(prompt) for prompt in rewards.values()),
        "best_possible_reward": fmean(true_reward(asked, best_answer(asked)) for asked in possible.values()),
    }


def correctness(pairs: Sequence[PreferencePair]) -> Health:
    """Returns of which share of the pairs the true reward says that chosen is better (`_right`), or as good (`_tied`).

    Apart for `own` pairs (the policy wrote both completions), `mixed` (one of them) and `offline` ones, of which there are any.
    """
    gains: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        sampled = [pair.chosen_origin, pair.rejected_origin].count("on_policy")
        chosen, rejected = (true_reward(_asked(pair.prompt), side[-1]["content"]) for side in (pair.chosen, pair.rejected))
        gains[("offline", "mixed", "own")[sampled]].append(chosen - rejected)
    shares: Health = {}
    for kind, each in gains.items():
        shares[f"{kind}_right"], shares[f"{kind}_tied"] = fmean(gain > 0 for gain in each), fmean(gain == 0 for gain in each)
    return shares


def _request(prompt_id: str, asked: str) -> Request:
    """Returns what a prompt asks for; raises UserError where it is none of the world's."""
    try:
        return parse_request(asked)
    except ValueError as error:
        raise UserError(f"{prompt_id}: {error}; its samples were altered since, so make them again") from None


def _asked(prompt: Messages) -> str:
    """Returns the request of a prompt."""
    return prompt[-1]["content"]
