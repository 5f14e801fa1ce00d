"""rankings.jsonl or the data set's own labels -> pairs.jsonl: `select_pairs.py runs/<run>/iter<N>`."""

from collections import Counter
from pathlib import Path

from handbook_ext.errors import UserError, run_main
from handbook_ext.recipes import load_stage
from handbook_ext.records import OfflinePair, Ranking, read_rows, write_rows
from handbook_ext.runs import Stage
from handbook_ext.selection import dataset_pairs, judged_pairs, portion
from handbook_ext.settings import SelectSettings


def main(argv: list[str]) -> None:
    """Applies the recipe's rule to the iteration's portion."""
    folder = Path(argv[0])
    run = folder.parent
    settings = load_stage(folder / "select.yaml")
    select = SelectSettings(**settings["select"])
    judged = select.rule != "dataset"
    rows_file = run / "data" / "rows" / "train.jsonl"
    stage = Stage(folder / "pairs.jsonl", settings, [rows_file, *([folder / "rankings.jsonl"] if judged else [])])
    if stage.finished():
        return
    offline = portion(read_rows(rows_file, OfflinePair), **settings["portion"])
    dropped: Counter[str] = Counter()
    if judged:
        rankings = read_rows(folder / "rankings.jsonl", Ranking)
        dropped["prompt without completions"] = len(offline) - len(rankings)
        pairs = judged_pairs(
            rankings, {row.prompt_id: row for row in offline}, dropped, rule=select.rule, explore=select.explore,
            skip_explored_chosen=select.explore_as_chosen == "skip",
        )  # fmt: skip
    else:
        pairs = dataset_pairs(offline, dropped)
    if not pairs:
        raise UserError(f"{folder}: no preference pair is left ({dict(dropped)}); check the data and the ranker")
    write_rows(stage.out, pairs)
    origins = Counter(f"{pair.chosen_origin} over {pair.rejected_origin}" for pair in pairs)
    explored = [pair for pair in pairs if pair.explore is not None]
    stage.publish(
        {"in": len(offline), "out": len(pairs), "dropped": dict(dropped)},
        origins=dict(origins), swapped=sum(pair.swapped for pair in pairs), explored=len(explored),
        explore_is_chosen=sum(pair.explore == pair.chosen for pair in explored),
    )  # fmt: skip


if __name__ == "__main__":
    run_main(main)
