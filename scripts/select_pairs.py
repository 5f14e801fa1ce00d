"""Rankings, log-probs or the data's own labels -> pairs.jsonl: `select_pairs.py runs/<run>/iter<N>`."""

from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.records import (
    Completion,
    OfflinePair,
    PreferencePair,
    Ranking,
    assistant,
    completion_id,
    read_rows,
    write_rows,
)
from handbook_ext.core.stage import Stage
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.recipes.settings import SelectSettings
from handbook_ext.recipes.writing import load_stage
from handbook_ext.selection.ensemble import EnsembleTerm
from handbook_ext.selection.log_prob_store import read_stores
from handbook_ext.selection.rules import (
    curriculum_pairs,
    dataset_pairs,
    gold_over_sample,
    judged_pairs,
    portion,
    skip_explored_chosen,
)
from handbook_ext.selection.sera import counts, kept_pairs, on_policy_pairs, reward_of, selection_value


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
    offline = portion(read_rows(rows_file, OfflinePair), **settings["portion"])
    dropped: Counter[str] = Counter()
    facts: dict[str, Any] = {}
    if select.rule == "dataset":
        pairs = dataset_pairs(offline, dropped)
    elif select.rule == "curriculum":
        pairs = curriculum_pairs(offline, select.rejected_rank, dropped)
    elif select.rule == "sera":
        pairs, facts = review(run, folder, settings, select, offline, dropped)
    elif select.rule == "gold_over_sample":
        pairs = gold_over_sample(offline, by_prompt(folder), dropped, explore=select.explore)
    else:
        rankings = read_rows(folder / "rankings.jsonl", Ranking)
        dropped["prompt without completions"] = len(offline) - len(rankings)
        pairs = judged_pairs(rankings, {row.prompt_id: row for row in offline}, dropped, rule=select.rule, explore=select.explore)
    if select.explore_as_chosen == "skip":
        pairs = skip_explored_chosen(pairs)
    if not pairs:
        raise UserError(f"{folder}: no preference pair is left ({dict(dropped)}); check the data and the ranker")
    write_rows(stage.out, pairs)
    publish(stage, pairs, len(offline), dropped, facts)


def by_prompt(folder: Path) -> dict[str, list[Completion]]:
    """Returns the samples of each prompt, in their order."""
    samples: dict[str, list[Completion]] = defaultdict(list)
    for row in read_rows(folder / "completions.jsonl", Completion):
        samples[row.prompt_id].append(row)
    return samples


def review(
    run: Path, folder: Path, settings: dict[str, Any], select: SelectSettings, offline: list[OfflinePair], dropped: Counter[str]
) -> tuple[list[PreferencePair], dict[str, Any]]:
    """Returns SeRA's pairs, and what the manifest says of them; every log-prob comes out of the run's stores."""
    stores = [run / name / "logprobs" for name in settings["stores"]]
    store = read_stores(stores)
    hashes: dict[str, str] = read_manifest(stores[-1])["external"] if stores else {}
    quality = reward_of(store, RewardForm(**settings["measure"]), [EnsembleTerm(**term) for term in settings["terms"]], hashes)
    under = store.under(hashes[settings["policy_from"] or "start"]) if stores else {}
    scored = [pair for pair in offline if not stores or completion_id(pair.prompt_id, pair.prompt, pair.chosen) in under]
    keep, add = counts(len(offline), select.keep, select.bootstrap)
    kept: list[PreferencePair] = []
    left: dict[str, list[float]] = {}
    if keep:
        dropped["prompt too long"] += len(offline) - len(scored)
        value = selection_value(
            select.keep_by, quality=quality, under=under, seed=settings["seed"], iteration=settings["iteration"]
        )
        kept, left["offline"] = kept_pairs(scored, keep, value, dropped, margins=select.keep_by == "margin")
    samples = by_prompt(folder) if add else {}
    own, left["own"] = on_policy_pairs(samples.values(), add, quality, dropped)
    if select.explore:
        first = {name: assistant(rows[0].text) for name, rows in samples.items()}
        kept, own = ([pair.model_copy(update={"explore": first.get(pair.prompt_id)}) for pair in pairs] for pairs in (kept, own))
    means = {"offline_kept": kept, "own_kept": own}
    margins = {
        name: fmean(values) for name, pairs in means.items() if (values := [p.margin for p in pairs if p.margin is not None])
    }
    margins |= {f"{name}_dropped": fmean(values) for name, values in left.items() if values and f"{name}_kept" in margins}
    facts = {
        "margins": margins,
        "kept": len(kept),
        "bootstrapped": len(own),
        "wanted": [keep, add],
        "store_entries": store.entries,
    }
    return [*kept, *own], facts | {"rows_in": len(offline) * bool(keep) + len(samples)}


def publish(stage: Stage, pairs: list[PreferencePair], offline: int, dropped: Counter[str], facts: dict[str, Any]) -> None:
    """Publishes the pairs; a rule that reads offline pairs and samples says in `facts` how many rows that makes."""
    origins = Counter(f"{pair.chosen_origin} over {pair.rejected_origin}" for pair in pairs)
    explored = [pair for pair in pairs if pair.explore is not None]
    stage.publish(
        {"in": facts.pop("rows_in", offline), "out": len(pairs), "dropped": dict(dropped)},
        origins=dict(origins), swapped=sum(pair.swapped for pair in pairs), explored=len(explored),
        explore_is_chosen=sum(pair.explore == pair.chosen for pair in explored), **facts,
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
