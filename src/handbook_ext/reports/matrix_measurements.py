"""What one policy wins over another, from the matrices that `make matrix` leaves: runs/matrix/<set>/<runs>/matrix.json."""

from __future__ import annotations

from pathlib import Path

from handbook_ext.core.errors import UserError
from handbook_ext.evaluation.set_evaluation import Grader
from handbook_ext.reports.evaluations import read_json
from handbook_ext.reports.measurements import Measurement, normal_interval


def win_of(runs: Path, name: str, ours: str, theirs: str) -> Measurement:
    """Returns the length-controlled win rate, in %, of a policy over another one, both called `<run> <policy>`.

    Raises LookupError where no matrix has both of them, or none has a length-controlled value.
    """
    for path in sorted(runs.glob(f"matrix/{name}/*/matrix.json")):
        matrix = read_json(path)
        try:
            if matrix["measure"] != "lc_win_rate" or not {ours, theirs} <= {*matrix["names"]}:
                continue
            row, column = (matrix["names"].index(each) for each in (ours, theirs))
            value, error = matrix["values"][row][column], matrix["standard_errors"][row][column]
            missing, count = matrix["missing"][row][column], int(matrix["n"])
        except (KeyError, IndexError, TypeError, ValueError) as mistake:
            raise UserError(f"{path}: is no usable matrix ({mistake!r}); delete it and make it again") from None
        low, high = (value, value) if error is None else normal_interval(value, error)
        return Measurement(
            value, low, high, way="none" if error is None else "normal", over_prompts=error, n=count - missing, missing=missing,
            prompts=count, of=count, judge=Grader(model=str(matrix["judge"]), kind="alpaca_eval"),
        )  # fmt: skip
    raise LookupError(f"no matrix of {name} has {ours} and {theirs}")
