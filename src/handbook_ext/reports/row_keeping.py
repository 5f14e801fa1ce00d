"""A finished run -> the row that is kept of it: the settings behind a policy, its evaluation, and what tables read besides."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

from handbook_ext.core.errors import UserError
from handbook_ext.core.integrity import unchanged
from handbook_ext.core.manifests import read_manifest
from handbook_ext.graph.measured import RowUnderSeed
from handbook_ext.recipes.measured_rows import MeasuredDecoding, MeasuredPolicy, MeasuredRow, packed
from handbook_ext.reports.evaluations import read_json
from handbook_ext.reports.row_sources import evaluation_of, implicit_of, log_ratios, made_of, pairs_of


def measured_row(unit: RowUnderSeed) -> MeasuredRow:
    """Returns what is kept of a row whose run is finished, with the pairs that were kept of it before.

    Raises UserError for an artifact that is not what its stage made, and for evaluations that cannot be kept: of a run that
    reads files outside, or whose policies have not the same prompts.
    """
    run, folder = unit.run, unit.folder
    if unit.outside:
        raise UserError(
            f"{run.name}: reads {unit.outside[0]}, which is no part of the recipe, so nobody could tell later whether it is the "
            "same; keep the run itself"
        )
    names = list(dict.fromkeys([run.start, unit.policy]))
    # What was kept for another table stays, as long as it is of this run.
    before = unit.kept if unit.kept is not None and unit.kept.settings == unit.settings else None
    iterations = sorted({*unit.iterations, *(before.pairs if before else ())})
    for artifact in [*(f"{name}/eval.json" for name in names), *(f"{name}/pairs.jsonl" for name in iterations)]:
        unchanged(folder / artifact)
    implicit = unit.implicit or (before is not None and before.policies[unit.policy].log_ratios is not None)
    evaluations = {name: evaluation_of(folder, name) for name in names}
    prompts = {scores.prompt_ids for found, _ in evaluations.values() for scores in found.values()}
    evaluators = {evaluator for _, evaluator in evaluations.values()}
    if len(prompts) > 1 or len(evaluators) > 1:
        raise UserError(f"{folder}: {' and '.join(names)} have not the same judge and prompts; evaluate both alike")
    [(seed, ranker, judge)], [ids] = evaluators, prompts
    made = made_of(folder, run.start, unit.policy)
    if made is None:
        raise UserError(f"{folder}/{unit.policy}/eval.json: its manifest does not say where it was made; make it again")
    policies = {
        name: MeasuredPolicy(
            decodings={
                key: MeasuredDecoding(
                    temperature=one.temperature, tokens=one.tokens.tolist(),
                    rewards=[None if each != each else each for each in one.rewards.tolist()],  # noqa: PLR0124
                )
                for key, one in found.items()
            },
            implicit=implicit_of(folder, name),
            log_ratios=_log_ratios(unit, ids) if implicit and name == unit.policy else None,
        )
        for name, (found, _) in evaluations.items()
    }  # fmt: skip
    pairs = {name: found for name in iterations if (found := pairs_of(folder, name)) is not None}
    compared = {*unit.compared, *(name for name, each in (before.pairs if before else {}).items() if each.offline is not None)}
    pairs = {name: each if name in compared else each.model_copy(update={"offline": None}) for name, each in pairs.items()}
    return MeasuredRow(
        run=run.name, policy=unit.policy, start=run.start, settings=unit.settings,
        made=made.model_copy(update={"seconds": _seconds(unit)}), seed=seed, ranker=ranker, judge=judge,
        prompts=list(ids), policies=policies, pairs=pairs,
    )  # fmt: skip


def _log_ratios(unit: RowUnderSeed, prompts: Sequence[str]) -> dict[str, str]:
    """Returns the log-ratios of a row's policy by side, packed; raises UserError for those of other prompts."""
    path = unit.folder / unit.policy / "eval.json"
    found = {}
    for side in dict.fromkeys(row["side"] for row in (read_json(path).get("implicit") or {"rows": []})["rows"]):
        values = log_ratios(path, side)
        if not {*values} <= {*prompts}:
            raise UserError(f"{path}: its implicit rewards are not of the prompts of its rewards; evaluate again")
        found[side] = packed([values.get(name, nan) for name in prompts])
    return found


def _seconds(unit: RowUnderSeed) -> float:
    """Returns the seconds of the stages behind a row, without those that were taken over from another run."""
    manifests = [read_manifest(unit.folder / rule.artifact) for rule in unit.rules]
    return round(sum(float(each["seconds"]) for each in manifests if not each.get("shared_from")), 2)
