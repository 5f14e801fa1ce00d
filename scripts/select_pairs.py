"""Rankings, log-probs or the data's own labels -> pairs.jsonl: `select_pairs.py runs/<run>/iter<N>`."""

from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.jsonl import read_rows, write_rows
from handbook_ext.core.records import Completion, OfflinePair, Ranking
from handbook_ext.core.stage import Stage
from handbook_ext.graph.stages import SelectStage
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.selection.ensemble import EnsembleTerm, StoredLogProbs, read_log_probs
from handbook_ext.selection.rules import Material, by_prompt, needs_of, select_pairs


def main(argv: list[str]) -> None:
    """Applies the recipe's rule to the iteration's portion."""
    stage = Stage.open(stage_folder(argv), SelectStage)
    if stage.finished():
        return
    settings, needs = stage.settings, needs_of(stage.settings.select)
    offline = read_rows(stage.input("rows"), OfflinePair)
    material = Material(
        settings.portion.rows_of(offline),
        # A ranking holds the texts of the samples that it judged.
        samples=by_prompt(row for path in stage.inputs("completions") for row in read_rows(path, Completion)),
        rankings=[row for path in stage.inputs("rankings") for row in read_rows(path, Ranking)],
        log_probs=log_probs_of(stage) if needs.log_probs else None,
        seed=settings.seed, iteration=settings.iteration,
    )  # fmt: skip
    selected = select_pairs(material, settings.select)
    if not selected.pairs:
        raise UserError(
            f"{stage.artifact.parent}: no preference pair is left ({dict(selected.dropped)}); check the data and the ranker"
        )
    write_rows(stage.out, selected.pairs)
    counts = {"in": selected.rows_in, "out": len(selected.pairs), "dropped": dict(selected.dropped)}
    stage.publish(counts, **selected.facts)


def log_probs_of(stage: Stage[SelectStage]) -> StoredLogProbs:
    """Returns the log-probs in the run's stores, the iteration's own last, with what makes margins of them."""
    settings = stage.settings
    terms = [EnsembleTerm(**term) for term in settings.terms]
    return read_log_probs(
        stage.inputs("log_probs"), starts_from=settings.policy, form=RewardForm(**settings.reward_form), terms=terms
    )


if __name__ == "__main__":
    run_main(main)
