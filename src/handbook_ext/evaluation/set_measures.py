"""What is measured on a policy's answers to a prompt set: the measures of a recipe, each by its own judge's question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_ext.core.set_records import SetAnswer, SetPrompt
from handbook_ext.data.prompt_sets import fetched
from handbook_ext.evaluation.grading import Judged, compared, graded, measured, not_run
from handbook_ext.evaluation.set_evaluation import Grader, MeasuredValue
from handbook_ext.graph.stages_benchmarks import GradeStage
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.judge_client import JudgeClient
from handbook_ext.judging.verdict_cache import VerdictCache
from handbook_ext.recipes.settings_benchmarks import START_ANSWERS, GraderSettings

POINTS, PERCENT = "1-10", "%"
NO_JUDGE = "no judge: name one in benchmarks.judge"
Verdicts = list[list[list[float | None]]]


@dataclass(frozen=True)
class Graded:
    """The measures of a set by name, and the verdicts behind them, prompt by prompt."""

    measures: dict[str, MeasuredValue]
    verdicts: dict[str, Verdicts]
    facts: dict[str, Any]


class SetGrader:
    """Grades one policy's answers; `start` are those of the policy that the run starts from, where they are compared."""

    def __init__(
        self, settings: GradeStage, prompts: Sequence[SetPrompt], answers: Sequence[SetAnswer], start: Sequence[SetAnswer],
        cache: Callable[[str], VerdictCache],
    ) -> None:  # fmt: skip
        """Takes what the stage says and reads; `cache` opens the kept replies under an asker's name."""
        self.settings, self.prompts, self.answers, self.start, self.cache = settings, prompts, answers, start, cache
        self.clients: list[JudgeClient] = []
        self.caches: list[VerdictCache] = []

    def grade(self) -> Graded:
        """Returns every measure of the settings; raises UserError where the judge fails: what it has replied is kept."""
        found = Graded({}, {}, {})
        for name in self.settings.measures:
            getattr(self, f"_{name}")(found)
        if self.clients:
            asked, cached = (sum(getattr(each, name) for each in self.clients) for name in ("asked", "from_cache"))
            # Each kind of question has its own asker, and a client of run 0.
            kinds = [each.cache.totals() for each in self.clients if each.run == 0]
            totals = {name: sum(each[name] for each in kinds) for name in kinds[0]}
            cost = self.clients[0].endpoint.cost(totals["prompt_tokens"], totals["completion_tokens"])
            found.facts["judge"] = {**totals, "cost_usd": cost, "asked": asked, "from_cache": cached}
        return found

    @property
    def replies(self) -> int:
        """Returns how many replies judges have given to all kinds of questions so far."""
        return sum(cache.totals()["replies"] for cache in self.caches)

    def _single(self, found: Graded) -> None:
        """Adds the points of the answers, the mean of all turns."""
        judged = self._graded("single", found, ("single",))
        if judged is not None:
            self._add(found, "single", judged, POINTS)

    def _mt_bench(self, found: Graded) -> None:
        """Adds the points of all turns, and of each."""
        judged = self._graded("mt_bench", found, ("average", "turn1", "turn2"))
        if judged is not None:
            self._add(found, "average", judged, POINTS)
            for turn in (0, 1):
                self._add(found, f"turn{turn + 1}", judged, POINTS, turn=turn)

    def _pairwise(self, found: Graded) -> None:
        """Adds the win rates over the start's answers and over each stored model's."""
        others = {f"vs_{name}": [prompt.outputs[name] for prompt in self.prompts] for name in self.settings.outputs}
        others |= {"vs_start": [row.answers[0].text for row in self.start]} if self.start else {}
        runs = self._runs("pairwise")
        ours = [row.answers[0].text for row in self.answers]
        for name, theirs in others.items():
            if runs:
                self._add(found, name, compared(self.prompts, ours, theirs, runs), PERCENT, scale=100.0)
            else:
                found.measures[name] = not_run(PERCENT, NO_JUDGE)

    def _alpaca_eval(self, found: Graded) -> None:
        """Adds win rate, length-controlled win rate and length by the package alpaca_eval."""
        # Here, since the package takes seconds to import, and is an extra.
        from handbook_ext.evaluation import alpaca_eval as alpaca  # noqa: PLC0415

        ours = alpaca.Outputs(self._label, [row.answers[0].text for row in self.answers])
        found.measures["length"] = _of_package(alpaca.mean_length(ours.texts), None)
        judge, baseline = self.settings.judge, str(self.settings.baseline)
        if judge is None or (baseline == START_ANSWERS and not self.start):
            reason = NO_JUDGE if judge is None else "this policy is the baseline"
            found.measures.update({name: not_run(PERCENT, reason) for name in ("lc_win_rate", "win_rate")})
            return
        stored = {START_ANSWERS: [row.answers[0].text for row in self.start]} if self.start else {}
        theirs = stored.get(baseline) or [prompt.outputs[baseline] for prompt in self.prompts]
        grader = alpaca.AlpacaJudge(judge.model, endpoint_of(judge), cache=self._opened("alpaca_eval"))
        instructions = [prompt.prompt[-1]["content"] for prompt in self.prompts]
        rows = grader.annotate(instructions, ours, alpaca.Outputs(baseline, theirs))
        # The package's own temperature is sent, none where the endpoint takes none.
        sent = None if judge.temperature is None else 1.0
        named = Grader(model=judge.model, kind="alpaca_eval", local=judge.local, temperature=sent)
        control = None if self.settings.length_control is None else fetched(self.settings.length_control)
        found.measures["win_rate"] = _of_package(alpaca.win_rate(rows), named)
        found.measures["lc_win_rate"] = _of_package(alpaca.length_controlled(rows, control), named)
        # The package's preference is 1 for the baseline and 2 for ours.
        found.verdicts["win_rate"] = [[[None if row["preference"] is None else row["preference"] - 1]] for row in rows]
        found.facts.update(alpaca_eval=grader.facts()["judge"])

    @property
    def _label(self) -> str:
        """Returns what the policy is called beside others."""
        return self.settings.checkpoint or f"{self.settings.recipe} {self.settings.policy}"

    def _graded(self, kind: str, found: Graded, names: Sequence[str]) -> Judged | None:
        """Returns the points of every turn; without a judge None, and the measures are not run."""
        runs = self._runs(kind)
        if runs:
            return graded(self.prompts, self.answers, runs)
        found.measures.update({name: not_run(POINTS, NO_JUDGE) for name in names})
        return None

    def _runs(self, kind: str) -> list[JudgeClient]:
        """Returns a client for each run of the judge, none where there is no judge."""
        judge = self.settings.judge
        if judge is None:
            return []
        cache = self._opened(kind)
        clients = [JudgeClient(judge.model, endpoint_of(judge), cache, run=run) for run in range(self.settings.judge_runs)]
        self.clients += clients
        return clients

    def _opened(self, kind: str) -> VerdictCache:
        """Returns the kept replies to a kind of question."""
        self.caches.append(self.cache(kind))
        return self.caches[-1]

    def _add(self, found: Graded, name: str, judged: Judged, unit: str, *, turn: int | None = None, scale: float = 1.0) -> None:
        """Adds a measure with its verdicts, in the unit of the measure."""
        judge, runs = self.settings.judge, self.settings.judge_runs
        if judge is not None:
            found.measures[name] = measured(judged, _named(judge, judged.kind), unit, turn=turn, scale=scale, runs=runs)
            found.verdicts[name] = [
                [run if turn is None else run[turn : turn + 1] for run in prompt] for prompt in judged.verdicts
            ]


def replies_file(run: Path) -> Path:
    """Returns the file in a run's folder that keeps the replies of its graders."""
    return run / ".grades.sqlite"


def endpoint_of(judge: GraderSettings) -> Endpoint:
    """Returns where a grader is asked."""
    return Endpoint(**judge.model_dump(exclude={"model"}), setting="benchmarks.judge")


def _named(judge: GraderSettings, kind: str) -> Grader:
    """Returns what a table says of a grader."""
    return Grader(model=judge.model, kind=kind, local=judge.local, temperature=judge.temperature)


def _of_package(value: Any, judge: Grader | None) -> MeasuredValue:
    """Returns a measure of the package in the form of all."""
    return MeasuredValue(
        value=value.value, standard_error=value.standard_error, n=value.n, missing=value.missing, unit=value.unit, judge=judge,
        not_run=value.not_run,
    )  # fmt: skip
