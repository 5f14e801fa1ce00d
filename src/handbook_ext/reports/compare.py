"""Several runs beside each other: in what they differ, the same rows for all, and paired tests between their last policies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.objectives.metrics import Interval
from handbook_ext.objectives.power import told_in_words
from handbook_ext.reports.evaluations import Json
from handbook_ext.reports.pairing import Compared, correct, matched_seeds, paired
from handbook_ext.reports.run_report import FinishedRun, judged_by, read_run, summarise_recipe
from handbook_ext.reports.settings_diff import differences_of, fact_differences, facts_of, read_manifests, settings_of
from handbook_ext.reports.verdict import decoding_words, percent

NAMED = 3  # Pairs of runs that are named, and not only counted.
SEED = re.compile(r"-seed\d+$")


def read_compared(folders: Sequence[Path]) -> list[Compared]:
    """Returns the runs of a page, seeds of one recipe under one name; raises UserError where fewer than two are left."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(map(str, folders))}: a run is named twice; name each once")
    groups: dict[str, list[FinishedRun]] = {}
    for folder in folders:
        run, label = read_run(folder), SEED.sub("", folder.name)
        # The same run in two folders is two runs: of two versions of the code, say.
        taken = any(other.seed == run.seed or other.recipe != run.recipe for other in groups.get(label, []))
        groups.setdefault(str(folder) if taken else label, []).append(run)
    if len(groups) < 2:
        raise UserError(f"{' '.join(map(str, folders))}: are the seeds of one run; name another run to compare them with")
    return [Compared(label, runs) for label, runs in groups.items()]


def summarise_compared(compared: Sequence[Compared], *, resamples: int, confidence: float) -> Json:
    """Returns all numbers of the page but those of prompt sets; settings that differ come first.

    Rewards and win rates of a run that another ranker judged than the first are left out, with a sentence that says so.
    """
    bootstrap = {"resamples": resamples, "confidence": confidence}
    manifests = {each.label: [one for run in each.runs for one in read_manifests(run.folder)] for each in compared}
    first = compared[0]
    judges = {each.label: judged_by(each.runs[0]) for each in compared}
    left_out = [
        f"{each.label} is judged by {judges[each.label]}, but {first.label} by {judges[first.label]}: its rewards and win rates "
        "are left out, and it is compared with no run that is judged otherwise"
        for each in compared
        if judges[each.label] != judges[first.label]
    ]
    # Called as the page calls them: two runs of one recipe differ in their folder's name alone.
    summaries = [summarise_recipe(each.runs, **bootstrap) | {"recipe": each.label} for each in compared]
    decodings = list(summaries[0]["temperatures"])
    primary = min(decodings, key=lambda key: key != "sampled")
    tests, why_not = pairwise_tests(compared, **bootstrap)
    return {
        "title": f"{', '.join(each.label for each in compared)} compared",
        "reward": "true reward" if first.runs[0].ranker == "oracle" else f"reward (by {first.runs[0].ranker})",
        "primary": primary, **bootstrap,
        "runs": [
            {"label": each.label, "folders": [str(run.folder) for run in each.runs], "seeds": [run.seed for run in each.runs],
             "judge": judges[each.label], "shown": judges[each.label] == judges[first.label], "last": each.last}
            for each in compared
        ],
        "settings": differences_of({name: settings_of(each) for name, each in manifests.items()}),
        "facts": fact_differences({name: facts_of(each) for name, each in manifests.items()}),
        "decodings": decodings,
        "rows": [
            row | {"shown": judges[row["run"]] == judges[first.label]} for row in rows_of_policies(compared, summaries)
        ],
        "summaries": [one for one in summaries if judges[one["recipe"]] == judges[first.label]],
        "tests": tests,
        "left_out": [*left_out, *why_not],
    }  # fmt: skip


def rows_of_policies(compared: Sequence[Compared], summaries: Sequence[Json]) -> list[Json]:
    """Returns a row for each policy and run, the start of every run first; `numbers` is None where a run has no such policy."""
    names = {name for each in summaries for name in (row["policy"] for row in each["policies"][1:])}
    order = sorted(names, key=lambda name: (int(name[4:]) if re.fullmatch(r"iter\d+", name) else 0, name))
    rows = []
    for place in (START, *order):
        for each, summary in zip(compared, summaries, strict=True):
            by_name = {row["policy"]: row for row in summary["policies"]}
            numbers = summary["policies"][0] if place == START else by_name.get(place)
            rows.append({"policy": place, "run": each.label, "numbers": numbers})
    return rows


def pairwise_tests(compared: Sequence[Compared], **bootstrap: Any) -> tuple[list[Json], list[str]]:
    """Returns the paired tests of every two runs' last policies by decoding, and why two runs have none.

    A test has win rate and gain of the first over the second on the prompts that both answered, p, and p after Holm's correction
    for as many tests as there are under the decoding.
    """
    tests: list[Json] = []
    why_not = []
    for ours, theirs in combinations(compared, 2):
        matched, reason = matched_seeds(ours, theirs)
        if reason:
            why_not.append(f"{ours.label} and {theirs.label} are not tested against each other: {reason}")
            continue
        decodings = [key for key in matched[0][0] if all(key in each for pair in matched for each in pair)]
        for decoding in decodings:
            pairs = [(our[decoding], their[decoding]) for our, their in matched]
            about = {"ours": f"{ours.label} {ours.last}", "theirs": f"{theirs.label} {theirs.last}", "decoding": decoding}
            about |= {"temperature": pairs[0][0].temperature}
            tests.append(about | paired(pairs, **bootstrap))
    for decoding in dict.fromkeys(test["decoding"] for test in tests):
        family = [test for test in tests if test["decoding"] == decoding]
        correct(family, bootstrap["confidence"])
    return tests, why_not


def compared_verdict(summary: Json) -> str:
    """Returns the first sentence of the page: what the tests of samples, or of the one decoding, say of every two runs."""
    family = [test for test in summary["tests"] if test["decoding"] == summary["primary"]]
    if not family:
        return "Nothing was tested: no two of these runs have an evaluation that compares."
    how = decoding_words(family[0]["temperature"])
    told = [test for test in family if test["side"]]
    if len(family) == 1:
        return f"{family[0]['words']}, {how}."
    if all(test["win_rate"].seeds is None for test in family):
        return f"One seed each, and so no verdict about any two of the {len(summary['runs'])} runs, {how} ({len(family)} tests)."
    if not told:
        return f"No two of the {len(summary['runs'])} runs can be told apart, {how} ({len(family)} tests{_power_of(family)})."
    beaten: dict[str, list[str]] = {}
    for test in told:
        better, worse = ("ours", "theirs") if test["side"] > 0 else ("theirs", "ours")
        won = test["win_rate"] if test["side"] > 0 else turned(test["win_rate"])
        beaten.setdefault(test[better], []).append(f"{test[worse]} ({percent(won)})")
    names = "; ".join(f"{better} beats {' and '.join(worse)}" for better, worse in beaten.items())
    # A pair with one seed has no verdict: it is neither told apart nor found to be alike.
    rest = [f"{test['ours']} and {test['theirs']}" for test in family if not test["side"]]
    others = ", ".join(rest) if len(rest) <= NAMED else f"the other {len(rest)} pairs"
    apart = f"; {others} cannot be told apart" if rest else ""
    return f"{names}{apart}; {how}{_power_of(family)}."


def _power_of(family: Sequence[Json]) -> str:
    """Returns how small a difference all tests of a family would have told, with 80 % each; "" where none has several seeds."""
    known = [test["detectable"] for test in family if test.get("detectable") is not None]
    return f"; {told_in_words(max(known), 'comparisons')} of each two" if known else ""


def turned(won: Interval) -> Interval:
    """Returns the win rate as the other side has it."""
    return Interval(1 - won.value, 1 - won.high, 1 - won.low, won.seeds)
