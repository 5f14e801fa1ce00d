"""Stops a run whose last iteration exceeds a limit of the recipe's `health`: `check_health.py runs/<run>/iter<N>`."""

import json

from handbook_ext.core.errors import UserError, run_main, stage_folder
from handbook_ext.core.stage import Stage
from handbook_ext.evaluation.implicit_summary import UNBIASED_AT
from handbook_ext.graph.stages import HealthStage
from handbook_ext.reports.health import exceeded, read_health


def main(argv: list[str]) -> None:
    """Writes health.json, unless a limit is exceeded: then the next iteration does not start."""
    folder = stage_folder(argv)
    stage = Stage.open(folder, HealthStage)
    if stage.finished():
        return
    health = read_health({role: stage.input(role) for role in stage.settings.inputs})
    clauses = exceeded(health, stage.settings.health)
    if clauses:
        of_kl = any(each.startswith("kl ") for each in clauses)
        words = f" (kl, the mean log-ratio of sampled answers to the first policy, is {UNBIASED_AT})" if of_kl else ""
        raise UserError(
            f"{folder}: the run stops here: {'; '.join(clauses)}{words}; look at the pairs, change the recipe, or raise the limit"
        )
    stage.out.write_text(json.dumps(health, indent=1))
    stage.publish({"in": 1, "out": 1})


if __name__ == "__main__":
    run_main(main)
