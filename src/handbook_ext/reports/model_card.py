"""The model card of a policy: what its manifests and evaluations say, through templates/model_card.md.j2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jinja2

from handbook_ext.core.artifacts import START
from handbook_ext.core.errors import UserError
from handbook_ext.core.stage_settings import read_settings_as
from handbook_ext.graph.stages import ReportStage
from handbook_ext.objectives.metrics import Interval, word_verdict
from handbook_ext.reports.card_facts import Json, TrainedPolicy
from handbook_ext.reports.citations import BIBTEX, METHODS, project_bibtex
from handbook_ext.reports.hub import Result, is_hub_id, model_card
from handbook_ext.reports.page_environment import markdown_escaped
from handbook_ext.reports.privacy import home_paths
from handbook_ext.reports.run_report import FinishedRun, judged_by, read_run, start_of, summarise
from handbook_ext.reports.set_results import SetMeasure, set_measures

TEMPLATE = "model_card.md.j2"


def render_card(folder: Path, repo: str | None = None) -> str:
    """Returns the card of the policy in runs/<run>/iter<N>, for a repository of the hub where one is named.

    Raises UserError where the policy is not finished, or the card would name a folder of this machine.
    """
    policy = TrainedPolicy(folder)
    evaluated = evaluation_of(policy)
    numbers = list(_numbers(evaluated)) if evaluated else []
    start = start_of(policy.run) if (policy.run / "report.yaml").is_file() else START
    measures = set_measures(policy.run, [start, folder.name])
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("handbook_ext.reports"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False,  # noqa: S701 - Markdown; cells go through `md`
    )  # fmt: skip
    pages.filters["md"] = markdown_escaped
    body = pages.get_template(TEMPLATE).render(
        name=policy.name, summary=summary_line(policy), load=repo, numbers=numbers, start=start, policy=folder.name,
        **_judging(evaluated), measures=list(_measure_rows(measures, start, folder.name)), made=list(policy.made()),
        first=list(policy.first_settings()), all_settings=policy.all_settings(), data=list(policy.data()),
        limits=list(limits(policy, evaluated, measures)), licence=_licence(policy),
        bibtex="\n".join([*(BIBTEX[each] for each in policy.methods), project_bibtex(policy.manifest["code"]["commit"])]),
    )  # fmt: skip
    if home := home_paths(body, policy.run, Path.cwd(), Path.home()):
        raise UserError(
            f"{folder}: its card would name {home}, a folder of this machine; take it out of the recipe's title or names"
        )
    return model_card(body, _results(policy, evaluated, measures), **front_matter(policy))


def evaluation_of(policy: TrainedPolicy) -> tuple[FinishedRun, Json] | None:
    """Returns the run as a report reads it, start and this policy alone, with its summary; None where one was not evaluated."""
    if not (policy.folder / "eval.json").is_file() or not (policy.run / "report.yaml").is_file():
        return None
    run = read_run(policy.run, [] if policy.folder.name == start_of(policy.run) else [policy.folder.name])
    report = read_settings_as(ReportStage, policy.run / ReportStage.file)[0].report
    return run, summarise([[run]], title=policy.name, resamples=report.bootstrap_resamples, confidence=report.confidence)


def summary_line(policy: TrainedPolicy) -> str:
    """Returns what the policy is, in a sentence."""
    base = policy.base
    of = f"of {policy.hub_base or 'a checkpoint of its author'}" if base else "of a policy built from random weights"
    made = f"(handbook_ext, recipe {policy.manifest['recipe']})"
    if not policy.methods:
        return f"{policy.folder.name} {of}, after supervised fine-tuning {made}."
    methods = " and ".join(METHODS[each] for each in policy.methods)
    return f"{policy.folder.name} {of}, aligned by iterative preference optimisation with {methods} {made}."


def front_matter(policy: TrainedPolicy) -> Json:
    """Returns the fields of the card's front matter; what is not known is left out, but for the licence."""
    stated = policy.data_settings
    datasets = [name for name in (stated.get("dataset"), stated.get("sft_dataset")) if is_hub_id(name)]
    fields: Json = {
        "model_name": policy.name, "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["handbook_ext", "preference-optimisation", *policy.methods], "license": policy.licence or "other",
    }  # fmt: skip
    if policy.licence is None:
        fields["license_name"] = "see-base"
    if policy.hub_base is not None:
        fields["base_model"] = policy.hub_base
    return fields | ({"datasets": datasets} if datasets else {})


def limits(policy: TrainedPolicy, evaluated: tuple[FinishedRun, Json] | None, measures: Sequence[SetMeasure]) -> Iterator[str]:
    """Yields what a reader must know before trusting the numbers: scale, judge, contamination, what was not run."""
    yield f"One seed ({policy.manifest['seed']}): an interval over prompts ignores the noise of training."
    if evaluated is not None:
        ranker = evaluated[0].ranker
        if ranker == "oracle":
            yield "The true reward is that of a small made-up world: it says nothing of real prompts."
        elif evaluated[0].labeller:
            yield f"Rewards are those of {ranker}, which labelled no pair; {evaluated[0].labeller} labelled."
        else:
            yield f"Rewards are those of {ranker}: where it labelled the pairs too, they show that it was satisfied, no more."
    if (shared := policy.rows.get("held_out_prompts_in_train")) is not None:
        yield f"Held-out prompts that the training data hold as well: {shared}."
    for name in dict.fromkeys(each.set for each in measures):
        seen = next(each.evaluation.contaminated for each in measures if each.set == name)
        told = f"{seen.overlap} of {seen.of} prompts stand in the training data too"
        yield f"{name}: {told if seen.of else 'whether the training data hold its prompts was not looked at'}."
    own = [each for each in measures if each.policy == policy.folder.name]
    not_run = {f"{each.set} {each.name}": each.one.not_run for each in own if each.one.not_run}
    yield from (f"Not run: {name} ({why})." for name, why in not_run.items())
    if not measures:
        yield "None of the papers' benchmarks (AlpacaEval 2, MT-Bench, the LM harness) was run on it."
    yield "Nothing was done or measured for safety, truthfulness or bias."


def _numbers(evaluated: tuple[FinishedRun, Json]) -> Iterator[Json]:
    """Yields the rows of the table of the loop's evaluation: start and this policy, with intervals."""
    summary = evaluated[1]
    policies = summary["recipes"][0]["policies"]
    for decoding in summary["recipes"][0]["temperatures"]:
        before, now = (each[decoding] for each in (policies[0], policies[-1]))
        row = partial(dict, decoding=decoding)
        for what, measure, digits in (("reward", summary["reward"], 3), ("tokens", "tokens", 1)):
            first, last = (_interval(each[what], digits=digits) for each in (before, now))
            yield row(measure=measure, start=first if len(policies) > 1 else "-", policy=last)
        if now["vs_start"] is not None:
            won = _interval(now["vs_start"]["win_rate"], 100, 1)
            yield row(measure="win rate against the start, %", start="-", policy=won)


def _judging(evaluated: tuple[FinishedRun, Json] | None) -> Json:
    """Returns what the template says of who judged, on how many prompts, and the conclusion."""
    if evaluated is None:
        return {"judged_by": "", "prompts": 0, "confidence": "", "headline": ""}
    run, summary = evaluated
    recipe, primary = summary["recipes"][0], summary["primary"]
    start, policy = recipe["policies"][0], recipe["policies"][-1]
    against = policy[primary]["vs_start"]
    verdict = "" if against is None else word_verdict(policy["policy"], start["policy"], against["win_rate"])
    return {
        "judged_by": judged_by(run), "prompts": recipe["prompts"][0], "confidence": f"{100 * summary['confidence']:g}",
        "headline": verdict and f"By the {primary} answers {verdict}.",
    }  # fmt: skip


def _measure_rows(measures: Sequence[SetMeasure], start: str, policy: str) -> Iterator[Json]:
    """Yields the rows of the table of prompt sets: each measure of either policy, side by side."""
    by_key = {(each.set, each.name, each.policy): each for each in measures}
    for name, measure in dict.fromkeys((each.set, each.name) for each in measures):
        sides = {side: by_key.get((name, measure, of)) for side, of in (("before", start), ("policy", policy))}
        one = sides["policy"] or sides["before"]
        if one is not None:
            values = {side: "not run" if each is None else each.words for side, each in sides.items()}
            yield {"set": name, "measure": f"{measure}, {one.one.unit}", "judge": one.judge or "-", "n": one.one.n, **values}


def _results(policy: TrainedPolicy, evaluated: tuple[FinishedRun, Json] | None, measures: Sequence[SetMeasure]) -> list[Result]:
    """Returns the numbers of the policy for the hub's index of results."""
    found = [
        Result(each.data_id, each.set, each.name, each.one.value)
        for each in measures
        if each.policy == policy.folder.name and each.one.value is not None
    ]
    if evaluated is not None:
        summary = evaluated[1]
        dataset = policy.data_settings.get("dataset") or "own"
        now = summary["recipes"][0]["policies"][-1][summary["primary"]]
        name = f"held-out prompts of {dataset}, {summary['primary']}"
        found.append(Result(dataset, name, summary["reward"], now["reward"].value))
        if now["vs_start"] is not None:
            found.append(Result(dataset, name, "win rate against the start", now["vs_start"]["win_rate"].value))
    return found


def _licence(policy: TrainedPolicy) -> str:
    """Returns the licence in words."""
    if policy.base is None and policy.licence is not None:
        return "Apache-2.0: its weights come from random ones, and from data that this project makes."
    if policy.licence is None:
        return f"See base: the terms of {policy.hub_base or 'what it was trained from'} hold, and those of its data."
    return f"That of its base: {policy.licence}. The data's own terms hold as well."


def _interval(one: Interval, scale: float = 1, digits: int = 3) -> str:
    """Returns a mean with its interval."""
    return f"{scale * one.value:.{digits}f} [{scale * one.low:.{digits}f}, {scale * one.high:.{digits}f}]"
