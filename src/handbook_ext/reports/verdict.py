"""The first sentence of a report: whether the last policy beats the start; and what went with each fall on the way.

What stands out in the numbers of an iteration that fell is told beside the fall. It is no proof: several things change at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from handbook_ext.objectives.metrics import Interval
from handbook_ext.objectives.power import detectable, told_in_words
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.run_report import FinishedRun

JUMP = 1.5
"""How many times its value of the iteration before a divergence or a fall of log-probs must be to stand out."""
LEAST_NATS = 1.0
LONGER = 0.1
"""The share by which answers must have grown or shrunk to stand out."""
SHARE = 0.1
"""The step of a share or of a correlation that stands out."""


@dataclass(frozen=True)
class Sign:
    """A share or correlation of an iteration's health that, moved by SHARE in one direction, is told beside a fall.

    `direction` is +1 where more is worse, -1 where less is, 0 where its distance from zero counts.
    """

    name: str
    direction: int
    words: str

    def moved(self, before: float, now: float) -> bool:
        """Returns whether it stands out."""
        if self.direction == 0:
            return abs(now) - abs(before) >= SHARE
        return self.direction * (now - before) >= SHARE


SIGNS = (
    Sign("length_correlation", 0, "chosen was more often the {} text (correlation of length and label {:.2f}, before {:.2f})"),
    Sign("distinct_completions", -1, "samples of a prompt were more alike ({:.0%} distinct, before {:.0%})"),
    Sign("tied_prompts", 1, "the ranker told fewer samples apart (all tied for {:.0%} of prompts, before {:.0%})"),
    Sign("identical_pairs", 1, "more prompts gave no pair ({:.0%} with equal texts, before {:.0%})"),
    Sign("cut_completions", 1, "more samples were cut at max_new_tokens ({:.0%}, before {:.0%})"),
    Sign("empty_completions", 1, "more samples were empty ({:.0%}, before {:.0%})"),
    Sign("failed_judgements", 1, "more judgements failed ({:.0%}, before {:.0%})"),
    Sign("swapped", 1, "more of the offline labels were swapped ({:.0%}, before {:.0%})"),
)  # fmt: skip


def verdict(summary: Json) -> str:
    """Returns one sentence for each recipe of a report on its last policy and its start, as far as the interval carries it.

    Over several seeds it ends with the smallest difference that these could have told.
    """
    many = len(summary["recipes"]) > 1
    sentences = []
    for recipe in summary["recipes"]:
        name, last = (f"{recipe['recipe']} " if many else ""), recipe["policies"][-1]
        if len(recipe["policies"]) < 2:
            sentences.append(f"{name}no iteration has been evaluated, so there is nothing to compare with the start.".lstrip())
            continue
        won = {key: last[key]["vs_start"]["win_rate"] for key in recipe["temperatures"]}
        primary = summary["primary"]
        seeds = f", over {len(recipe['seeds'])} seeds" if len(recipe["seeds"]) > 1 else ""
        words = f"{name}{last['policy']} {verdict_words(won[primary])}{seeds}, {decoding_words(recipe['temperatures'][primary])}"
        # One decoding stands for all only where the others say the same.
        others = [
            f"{decoding_words(recipe['temperatures'][key])} it {verdict_words(one, short=True)}"
            for key, one in won.items()
            if one.side_here(0.5) != won[primary].side_here(0.5)
        ]
        power = told_in_words(detectable(won[primary], len(recipe["seeds"]), summary["confidence"]), "reports")
        sentences.append("; ".join([words, *others, *([power] if power else [])]) + ".")
    return " ".join(sentences)


def verdict_words(won: Interval, than: str = "the start", *, short: bool = False) -> str:
    """Returns what a win rate says of a policy and another one: `beats the start: wins 71.0 % of prompts [66.0, 76.0]`."""
    share = f"wins {percent(won)}" if short else f"wins {100 * won.value:.1f} % of prompts {percent(won, brackets=True)}"
    side = won.side(0.5)
    if won.seeds is None:
        return share if short else f"against {than}: {share}, one seed and so no verdict"
    if short:
        return f"{('falls behind', 'cannot be told apart', 'beats it')[side + 1]} ({share})"
    if side == 0:
        return f"cannot be told apart from {than}: {share}"
    return f"beats {than}: {share}" if side > 0 else f"falls behind {than}: {share}"


def percent(won: Interval, *, brackets: bool = False) -> str:
    """Returns a share in percent with its interval, or the interval alone."""
    ends = f"[{100 * won.low:.1f}, {100 * won.high:.1f}]"
    return ends if brackets else f"{100 * won.value:.1f} % {ends}"


def decoding_words(temperature: float) -> str:
    """Returns how answers were decoded."""
    return "decoded greedily" if temperature == 0 else f"sampled at temperature {temperature:g}"


def falls(groups: Sequence[Sequence[FinishedRun]], summary: Json) -> list[Json]:
    """Returns each iteration whose reward fell by more than noise against the one before: a sentence, and what went with it."""
    found = []
    for runs, recipe in zip(groups, summary["recipes"], strict=True):
        many = f"{recipe['recipe']}: " if len(groups) > 1 else ""
        for before, now in zip(recipe["policies"], recipe["policies"][1:], strict=False):
            fell = {key: now[key]["vs_previous"] for key in recipe["temperatures"] if has_fallen(now[key])}
            if not fell:
                continue
            shown = min(fell, key=lambda key: key != summary["primary"])
            gain, won = fell[shown]["gain"], fell[shown]["win_rate"]
            seed = ", in this one seed" if gain.seeds is None else ""
            how = " and ".join(decoding_words(recipe["temperatures"][key]) for key in dict.fromkeys([shown, *fell]))
            signs = went_with(runs, before, now, summary["primary"])
            words = f"It went with: {'; '.join(signs)}" if signs else "Nothing that is measured here stands out beside it"
            than = "the start" if before is recipe["policies"][0] else before["policy"]
            change = f"{summary['reward']} {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}], wins {percent(won)} of prompts"
            sentence = f"{many}{now['policy']} fell against {than}{seed}: {change}, {how}. {words}."
            found.append({"recipe": recipe["recipe"], "policy": now["policy"], "sentence": sentence, "went_with": signs})
    return found


def has_fallen(measured: Json) -> bool:
    """Returns whether a policy's reward fell by more than noise against the one before, by its row of a decoding's summary."""
    return bool(measured["vs_previous"] is not None and measured["vs_previous"]["gain"].side_here(0) < 0)


def went_with(runs: Sequence[FinishedRun], before: Json, now: Json, decoding: str) -> list[str]:
    """Returns in words what stands out in an iteration beside the one before: divergence, length, log-probs, pairs.

    before, now: their rows of the summary. Numbers are means over seeds; lengths are of held-out answers, in tokens.
    """
    signs = []
    health, earlier = _health(runs, now["policy"]), _health(runs, before["policy"])
    # The policy that a run starts from has no divergence from itself, and no training to be compared with.
    if _jumped(earlier.get("kl", 0.0), kl := health.get("kl")):
        # Of samples at another temperature than 1 it is not the KL divergence.
        hottest = max(scores.temperature for scores in runs[0].policies[now["policy"]].values())
        how = f"on answers {decoding_words(hottest)}"
        signs.append(f"the mean log-ratio to the start, {how}, jumped to {kl:.1f} nats, from {earlier.get('kl', 0.0):.1f}")
    old, new = before[decoding]["tokens"].value, now[decoding]["tokens"].value
    if old and abs(new / old - 1) >= LONGER:
        signs.append(f"answers {'grew' if new > old else 'shrank'} to {new:.1f} tokens, from {old:.1f}")
    for side in ("chosen", "rejected"):
        # Exact for chosen, where the loss has a reference: the same completions before and after.
        fall, usual = (
            _health(runs, row["policy"]).get(f"{side}_fall", _log_prob_fall(runs, row["policy"], side)) for row in (now, before)
        )
        if _jumped(usual or 0.0, fall):
            beside = f", before by {usual:.1f}" if usual is not None else ""
            signs.append(f"training lowered the log-prob of {side} by {fall:.1f} nats{beside}")
    for sign in SIGNS:
        if sign.name in health and sign.name in earlier and sign.moved(earlier[sign.name], health[sign.name]):
            longer = ["longer" if health[sign.name] > 0 else "shorter"] if sign.direction == 0 else []
            signs.append(sign.words.format(*longer, health[sign.name], earlier[sign.name]))
    return signs


def _jumped(before: float, now: float | None) -> bool:
    """Returns whether a divergence or fall (nats) is by far larger than before, and large at all."""
    return now is not None and now >= max(LEAST_NATS, JUMP * max(before, 0.0))


def _health(runs: Sequence[FinishedRun], policy: str) -> dict[str, float]:
    """Returns the metrics of the iteration that trained a policy, means over the seeds that have them."""
    rows = [row for run in runs for row in run.health if row.get("iteration") == policy]
    names = {name for row in rows for name, value in row.items() if isinstance(value, float)}
    return {name: fmean(row[name] for row in rows if isinstance(row.get(name), float)) for name in names}


def _log_prob_fall(runs: Sequence[FinishedRun], policy: str, side: str) -> float | None:
    """Returns the nats by which training lowered the mean log-prob of a side: from its first logged third to its last."""
    found = []
    for run in runs:
        values = [row[f"logps/{side}"] for row in run.history.get(policy, []) if f"logps/{side}" in row]
        third = max(1, len(values) // 3)  # A log line alone is a batch or two: noise.
        if len(values) > 1:
            found.append(fmean(values[:third]) - fmean(values[-third:]))
    return fmean(found) if found else None
