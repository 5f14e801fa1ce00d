"""AlpacaEval's published leaderboard against ours: `python -m tests.evaluation.alpaca_leaderboard --repository CLONE [...]`.

CLONE is a clone of github.com/tatsu-lab/alpaca_eval, bare or not; results that it does not hold are left out and counted.
Compared with the leaderboard of AlpacaEval 2, model by model:

- win rate and standard error of the published annotations, and the mean length of the published outputs;
- the published preferences: the judge's published replies are served to our annotator over HTTP, so that prompt, seeds, order
  of the two outputs and parser must be theirs;
- the length-controlled win rate by the published weights, with --difficulty: the hub's instruction_difficulty.csv.

The fit of those weights is not compared: it needs the hub's df_gamed.csv. Nothing of these data lies in this repository. The exit
status is 1 where anything differs but for what `KNOWN` names.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_ext.evaluation.alpaca_eval import INSTRUCTIONS, AlpacaJudge, Outputs, mean_length, win_rate
from handbook_ext.evaluation.alpaca_package import EVALUATOR, predicted
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.verdict_cache import VerdictCache
from tests.judging.misbehaving_server import Behaviour, MisbehavingServer, raw

BASELINE = "gpt4_1106_preview"
BOARD = f"src/alpaca_eval/leaderboards/data_AlpacaEval_2/{EVALUATOR}_leaderboard.csv"
WEIGHTS = f"src/alpaca_eval/metrics/weights/{EVALUATOR}/length_controlled_v1/baseline_{BASELINE}.csv"
KNOWN = {
    ("length_controlled_winrate", "dbrx-instruct"): "its published weights give another value than the published one",
    ("length_controlled_winrate", "NullModel"): "its published weights give another value than the published one",
}


@dataclass
class Comparison:
    """How one quantity agrees with the published one: models compared, deviations by model, and how large one may be."""

    name: str
    allowed: float
    deviations: dict[str, float] = field(default_factory=dict)

    def add(self, model: str, ours: float, published: float) -> None:
        """Takes a model's two values."""
        self.deviations[model] = abs(ours - published)

    @property
    def differing(self) -> list[str]:
        """The models that differ by more."""
        return [model for model, deviation in self.deviations.items() if not deviation <= self.allowed]

    @property
    def unexplained(self) -> list[str]:
        """Those of them that nothing is known of."""
        return [model for model in self.differing if (self.name, model) not in KNOWN]

    def line(self) -> str:
        """What is printed."""
        count, agree = len(self.deviations), len(self.deviations) - len(self.differing)
        largest = max((value for model, value in self.deviations.items() if model not in self.differing), default=0.0)
        line = f"{self.name}: {agree} of {count} within {self.allowed:g}, the largest deviation among them {largest:.2g}"
        reasons = {model: KNOWN.get((self.name, model), "unexplained") for model in self.differing}
        return "\n  ".join([line, *(f"{model}: {self.deviations[model]:.2g} ({reason})" for model, reason in reasons.items())])


class Clone:
    """The published files, read out of git's objects: a clone need not have a work tree, nor every large file."""

    def __init__(self, path: Path) -> None:
        """Takes the clone's folder."""
        self.path = path

    def text(self, name: str) -> str:
        """Returns a file of the last commit."""
        return self._git("show", f"HEAD:{name}")

    def table(self, name: str) -> dict[str, dict[str, str]]:
        """Returns a CSV's rows by their first column, the last one where a model has two."""
        rows = csv.DictReader(io.StringIO(self.text(name)))
        return {row[""]: row for row in rows}

    def results(self, name: str) -> Iterator[tuple[str, str]]:
        """Yields model and path of the results of this name that are whole in the clone."""
        tree = [line.split(maxsplit=3) for line in self._git("ls-tree", "-r", "HEAD", "results").splitlines()]
        wanted = {(path.split("/")[1], path): blob for _, _, blob, path in tree if path.split("/", 2)[2] == name}
        known = self._git("cat-file", "--batch-check", given="\n".join(wanted.values())).splitlines()
        for (model, path), said in zip(wanted, known, strict=True):
            if not said.endswith("missing"):
                yield model, path

    def _git(self, *words: str, given: str = "") -> str:
        """Returns what git prints."""
        command = ["git", "-C", str(self.path), *words]
        return subprocess.run(command, input=given, capture_output=True, text=True, encoding="utf-8", check=True).stdout


def compare_win_rates(clone: Clone) -> list[Comparison]:
    """Compares win rates and standard errors of all published annotations, and mean lengths of all published outputs."""
    board = clone.table(BOARD)
    wins, errors, lengths = Comparison("win_rate", 1e-6), Comparison("standard_error", 1e-6), Comparison("avg_length", 0)
    for model, path in clone.results(f"{EVALUATOR}/annotations.json"):
        if model in board:
            found = win_rate(json.loads(clone.text(path)))
            wins.add(model, found.value or 0.0, float(board[model]["win_rate"]))
            errors.add(model, found.standard_error or 0.0, float(board[model]["standard_error"]))
    for model, path in clone.results("model_outputs.json"):
        if model in board:
            outputs = [row["output"] for row in json.loads(clone.text(path))]
            # Seven files have lost their empty outputs since; the board counts them.
            outputs += [""] * (INSTRUCTIONS - len(outputs))
            lengths.add(model, mean_length(outputs).value or 0.0, float(board[model]["avg_length"]))
    return [wins, errors, lengths]


def compare_preferences(clone: Clone, most: int) -> Comparison:
    """Compares the preferences of our annotator, which is given the judge's published replies, of so many models."""
    comparison = Comparison("preferences", 1e-6)
    for model, path in clone.results(f"{EVALUATOR}/annotations.json"):
        rows = json.loads(clone.text(path))
        if "raw_completion" in rows[0] and len(comparison.deviations) < most:
            comparison.deviations[model] = _largest_deviation(rows)
    return comparison


def compare_length_controlled(clone: Clone, difficulty: Path) -> list[Comparison]:
    """Compares the length-controlled win rates that the published weights give, and their standard errors where published."""
    board, models = clone.table(BOARD), clone.table(WEIGHTS)
    values, errors = Comparison("length_controlled_winrate", 1e-3), Comparison("lc_standard_error", 1e-3)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.csv")
        weights.write_text(clone.text(WEIGHTS), encoding="utf-8")
        for model in sorted(models.keys() & board.keys()):
            row = board[model]
            published = float(row["length_controlled_winrate"])
            # Older versions of the package dropped unreadable verdicts before the mean, newer ones do not; no file says which.
            both = [predicted(model, BASELINE, weights, difficulty, count) for count in (INSTRUCTIONS, int(row["n_total"]))]
            value, error = min(both, key=lambda found: abs(found[0] - published))
            values.add(model, value, published)
            if row["lc_standard_error"]:
                errors.add(model, error, float(row["lc_standard_error"]))
    return [values, errors]


def _largest_deviation(rows: Sequence[dict[str, Any]]) -> float:
    """Returns the largest difference between published preferences and those that our annotator makes of published replies."""
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    replies = {row["instruction"]: json.dumps({"choices": [row["raw_completion"]], "usage": usage}) for row in rows}

    def published(question: str, attempt: int) -> Behaviour:
        """Answers as the published judge did."""
        start, end = '"instruction": """', '""",\n}\n\n## Model Outputs'
        return raw(replies[question[question.index(start) + len(start) : question.index(end)]])

    server = MisbehavingServer(lambda question: "", published)
    with tempfile.TemporaryDirectory() as folder:
        cache = VerdictCache(Path(folder, "replies.sqlite"))
        judge = AlpacaJudge("gpt-4-1106-preview", Endpoint(base_url=server.url, key_variable="NO_KEY"), cache=cache)
        ours = judge.annotate(
            [row["instruction"] for row in rows], Outputs("ours", [row["output_2"] for row in rows]),
            Outputs(BASELINE, [row["output_1"] for row in rows]),
        )  # fmt: skip
        cache.close()
    server.close()
    pairs = zip(ours, rows, strict=True)
    return max(float("inf") if own["preference"] is None else abs(own["preference"] - row["preference"]) for own, row in pairs)


def main(argv: Sequence[str]) -> int:
    """Prints how many models agree, and by how much the others differ; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.evaluation.alpaca_leaderboard", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, required=True, help="a clone of github.com/tatsu-lab/alpaca_eval")
    parser.add_argument("--difficulty", type=Path, help="instruction_difficulty.csv of the hub's data set tatsu-lab/alpaca_eval")
    parser.add_argument("--replay", type=int, default=3, help="how many models' published replies to serve (default: 3)")
    args = parser.parse_args(argv)
    clone = Clone(args.repository)
    comparisons = [*compare_win_rates(clone), compare_preferences(clone, args.replay)]
    if args.difficulty is None:
        print("length_controlled_winrate: not run: no --difficulty")
    else:
        comparisons += compare_length_controlled(clone, args.difficulty)
    for each in comparisons:
        print(each.line())
    return int(any(each.unexplained or not each.deviations for each in comparisons))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
