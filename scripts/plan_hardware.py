"""What a run would take on a machine, and which settings make it fit: `plan_hardware.py runs/<run>`; trains nothing."""

import sys

from handbook_ext.core.errors import run_main, stage_folder
from handbook_ext.graph.goals import PLAN_REQUEST
from handbook_ext.planning.choices import best_launch
from handbook_ext.planning.hardware_plan import plan_text
from handbook_ext.planning.remedies import refusal
from handbook_ext.planning.request import read_request, rules_once, settings_of
from handbook_ext.planning.written_recipe import write_recipe


def main(argv: list[str]) -> None:
    """Prints the plan that was asked for; writes its recipe where a file was named; refuses what cannot fit."""
    folder = stage_folder(argv)
    request, runs = read_request(folder / PLAN_REQUEST), folder.parent
    launches = settings_of(request, runs)
    setting, choice, tried = best_launch(launches, rules_once())
    if choice.excess:
        raise refusal(request, runs, setting, choice, tried)
    sys.stdout.write(plan_text(request, setting, choice, launches[0]))
    if request.write:
        sys.stdout.write(write_recipe(request, setting, choice, launches[0]))


if __name__ == "__main__":
    run_main(main)
