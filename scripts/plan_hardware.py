"""What a run would take on a machine, and which settings make it fit: `plan_hardware.py runs/<run>/plan-<hash>.json`.

Make writes that file, which holds what `make <run>-plan` was asked for. Nothing is trained.
"""

import sys
from pathlib import Path

from handbook_ext.core.errors import UserError, run_main
from handbook_ext.planning.choices import best_launch
from handbook_ext.planning.hardware_plan import plan_text
from handbook_ext.planning.remedies import refusal
from handbook_ext.planning.request import read_request, rules_once, settings_of
from handbook_ext.planning.written_recipe import write_recipe


def main(argv: list[str]) -> None:
    """Prints the plan that was asked for; writes its recipe where a file was named; refuses what cannot fit."""
    if len(argv) != 1:
        raise UserError("plan_hardware.py needs the file of a request; make <run>-plan writes one and calls this")
    file = Path(argv[0])
    request, runs = read_request(file), file.parent.parent
    launches = settings_of(request, runs)
    setting, choice, tried = best_launch(launches, rules_once())
    if choice.excess:
        raise refusal(request, runs, setting, choice, tried)
    sys.stdout.write(plan_text(request, setting, choice, launches[0]))
    if request.write:
        sys.stdout.write(write_recipe(request, setting, choice, launches[0]))


if __name__ == "__main__":
    run_main(main)
