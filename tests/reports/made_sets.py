"""The stages of prompt sets of a made run, with the rows and answers that all its stages share."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from handbook_ext.core.artifacts import read_manifest, recorded_hash
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.core.set_records import SetAnswer, SetPrompt, SetTurn
from handbook_ext.core.stage import Stage
from handbook_ext.data.tiny_world import best_answer, request_prompt
from handbook_ext.evaluation.harness_measures import TaskResult, facts_of, harness_evaluation
from handbook_ext.evaluation.set_evaluation import EvaluatedPolicy
from handbook_ext.recipes.run import Run

HELD_OUT = 8


def words(rng: random.Random, prompt: str) -> str:
    """An answer: the best one, or some of its words."""
    best = best_answer(prompt).split()
    return " ".join(best[: rng.randint(1, len(best))])


def pairs(start: int, count: int) -> list[OfflinePair]:
    rng = random.Random(start)
    return [
        OfflinePair.of(
            f"p{number}", user(request_prompt(number)), assistant(best_answer(request_prompt(number))),
            assistant(f"nothing {rng.randint(0, 9)}"), raw_row=number - start, raw_rows=count,
        )
        for number in range(start, start + count)
    ]  # fmt: skip


def make_prompts(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    rows = [
        SetPrompt(
            prompt_id=each.prompt_id, prompt=each.prompt, follow_ups=["And then?"], category="writing",
            outputs={"other": "an answer of another model, at /usr/share/dict/words"}, seen=each.prompt_id == "p0",
        )
        for each in pairs(0, HELD_OUT)
    ]  # fmt: skip
    return write_rows(stage.out, rows), {"of": HELD_OUT, "seen": 1}


def make_answer(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    rng = random.Random(stage.settings.policy)
    rows = [
        SetAnswer(
            prompt_id=each.prompt_id, seed=number,
            answers=[SetTurn(text=words(rng, each.prompt[0]["content"]), tokens=3, finish_reason="stop") for _ in range(2)],
        )
        for number, each in enumerate(pairs(0, HELD_OUT))
    ]  # fmt: skip
    return write_rows(stage.out, rows), {"policy": read_manifest(folder / stage.settings.policy / "policy")["policy"]}


def make_grade(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    """An evaluation as scripts/grade_answers.py leaves it: points of two turns, a win rate, and a length."""
    policy, rng = stage.settings.policy, random.Random(stage.settings.policy)
    answers = [json.loads(line) for line in stage.input("answers").read_text().splitlines()]
    points = [[[float(rng.randint(1, 10)), None if number == 3 else float(rng.randint(1, 10))]] for number in range(HELD_OUT)]
    wins = [[[rng.choice([0.0, 0.5, 1.0])]] for _ in range(HELD_OUT)]
    means = [fmean(value for value in prompt[0] if value is not None) for prompt in points]
    shares = [100.0 * prompt[0][0] for prompt in wins]
    chances = [[[rng.random()]] for _ in range(HELD_OUT)]
    about = {
        "missing": 0,
        "judge": {"model": "a-judge", "kind": "single", "local": False, "temperature": 0.0},
        "runs": 1,
        "not_run": None,
    }
    lengths = [len(answer["answers"][0]["text"]) for answer in answers]

    def measure(values: list[float], unit: str, **more: Any) -> dict[str, Any]:
        error = stdev(values) / len(values) ** 0.5
        return {**about, "value": fmean(values), "standard_error": error, "n": len(values), "unit": unit, **more}

    content = {
        "format": 6,
        "policy": {"name": policy, "sha256": read_manifest(folder / policy / "policy")["policy"], "checkpoint": None},
        "set": {"name": "quiz", "prompts": HELD_OUT, "of": HELD_OUT, "sha256": recorded_hash(stage.input("prompts"))},
        "seed": stage.settings.seed,
        "decoding": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 32, "temperatures": {}},
        "contaminated": {"overlap": 1, "of": HELD_OUT, "prompt_ids": ["p0"]},
        "measures": {
            "single": measure(means, "1-10", missing=1), "vs_other": measure(shares, "%"),
            "win_rate": measure([100.0 * prompt[0][0] for prompt in chances], "%"),
            "length": {**measure([1.0, 2.0], "characters"), "value": float(sum(lengths) // HELD_OUT), "standard_error": None,
                       "n": HELD_OUT, "judge": None},
            "lc_win_rate": {**measure([1.0, 2.0], "%"), "value": None, "standard_error": None, "n": 0, "judge": None,
                            "not_run": "df_gamed.csv is not here"},
        },
        "rows": [
            {"prompt_id": answer["prompt_id"], "category": "writing", "answers": answer["answers"],
             "verdicts": {"single": points[place], "vs_other": wins[place], "win_rate": chances[place]}}
            for place, answer in enumerate(answers)
        ],
    }  # fmt: skip
    stage.out.write_text(json.dumps(content, indent=1))
    return HELD_OUT, {}


def make_harness(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    about = EvaluatedPolicy(name=stage.settings.policy, sha256=read_manifest(folder / stage.settings.policy / "policy")["policy"])
    result = TaskResult(
        task="hellaswag", unit="%", metric="acc_norm,none", num_fewshot=10, definition="hellaswag.yaml", value=0.25,
        standard_error=0.01, n=40, of=40, sha256="0" * 64,
    )  # fmt: skip
    stage.out.write_text(harness_evaluation(about, [result], seed=stage.settings.seed).model_dump_json(indent=1))
    return 40, {"harness": facts_of([result])}
