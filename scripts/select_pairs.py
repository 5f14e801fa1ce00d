"""Rankings, log-probs or the data's own labels -> pairs.jsonl: `select_pairs.py runs/<run>/iter<N>`."""

from pathlib import Path
from typing import Any

from handbook_ext.recipes.writing import load_stage

from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.records import Completion, OfflinePair, Ranking, read_rows, write_rows
from handbook_ext.core.stage import Stage
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.recipes.settings import SelectSettings
from handbook_ext.selection.ensemble import EnsembleTerm, StoredLogProbs, read_log_probs
from handbook_ext.selection.rules import Material, by_prompt, needs_of, portion, select_pairs


def main(argv: list[str]) -> None:
    """Applies the recipe's rule to the iteration's portion."""
    folder = stage_folder(argv)
    run = folder.parent
    settings = load_stage(folder / "select.yaml")
    select = SelectSettings(**settings["select"])
    rows_file = run / "data" / "rows" / "train.jsonl"
    stores = [run / name / "logprobs" for name in settings.get("stores", [])]
    stage = Stage(folder / "pairs.jsonl", settings, [rows_file, *(folder / name for name in settings["reads"]), *stores])
    if stage.finished():
        return
    needs = needs_of(select)
    # A ranking holds the texts of the samples that it judged.
    completions = folder / "completions.jsonl" if needs.samples and not needs.rankings else None
    material = Material(
        portion(read_rows(rows_file, OfflinePair), **settings["portion"]),
        samples=by_prompt(read_rows(completions, Completion)) if completions else {},
        rankings=read_rows(folder / "rankings.jsonl", Ranking) if needs.rankings else [],
        log_probs=log_probs_of(stores, settings) if needs.log_probs else None,
        seed=settings["seed"], iteration=settings["iteration"],
    )  # fmt: skip
    selected = select_pairs(material, select)
    if not selected.pairs:
        raise UserError(f"{folder}: no preference pair is left ({dict(selected.dropped)}); check the data and the ranker")
    write_rows(stage.out, selected.pairs)
    counts = {"in": selected.rows_in, "out": len(selected.pairs), "dropped": dict(selected.dropped)}
    stage.publish(counts, **selected.facts)


def log_probs_of(stores: list[Path], settings: dict[str, Any]) -> StoredLogProbs:
    """Returns the log-probs in the run's stores, the iteration's own last, with what makes margins of them."""
    terms = [EnsembleTerm(**term) for term in settings["terms"]]
    return read_log_probs(stores, start=settings["policy_from"] or "start", form=RewardForm(**settings["measure"]), terms=terms)


if __name__ == "__main__":
    run_main(main)
