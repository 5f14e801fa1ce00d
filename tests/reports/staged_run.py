"""A finished run of recipes/mine/selm.yaml, every artifact published by the real Stage with made content, in a second."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.jsonl import write_rows
from handbook_ext.core.records import Candidate, Completion, OfflinePair, PreferencePair, Ranking
from handbook_ext.core.stage import Stage
from handbook_ext.data.tiny_world import best_answer, true_reward
from handbook_ext.evaluation.implicit_summary import summarised
from handbook_ext.graph.makefile import write_run
from handbook_ext.graph.run_rules import StageRule, run_rules
from handbook_ext.recipes.run import Run, resolve
from handbook_ext.reports.ledger_numbers import summary_of
from handbook_ext.reports.pages import to_json
from tests.reports import made_sets
from tests.reports.made_sets import HELD_OUT, pairs, words

RECIPE = """
base: ../tiny/base.yaml
paper: "SELM table 1, SELM Iter 1 to 3"
report: {bootstrap_resamples: 100}
train: {beta: 0.2}
iterations: {iter2: null, iter3: null}
data: {portions: 2}
benchmarks:
  judge: {model: a-judge, base_url: "http://node17.cluster.example:8000/v1"}
  contaminated: mark
  harness: {tasks: [hellaswag]}
  sets:
    quiz:
      source: test
      measures: [single, pairwise, alpaca_eval]
      outputs: {other: "https://example.org/other.json"}
      baseline: other
      max_new_tokens: 32
"""
ROWS = 6


def made_run(runs: Path, name: str = "mine-selm") -> Path:
    """Makes every stage of the run, in order; returns its folder. The current folder has recipes/mine/selm.yaml."""
    run = resolve(name)
    run = replace(run, sets=run.settings.benchmarks.evaluations)
    write_run(run, runs)
    folder = runs / run.name
    for rule in run_rules(run):
        make_stage(folder, rule, run)
    return folder


def make_stage(folder: Path, rule: StageRule, run: Run) -> None:
    """Makes one artifact."""
    stage: Stage[Any] = Stage.open(folder / rule.folder, type(rule.settings))
    assert not stage.finished()
    makers = {**globals(), **vars(made_sets)}
    counts, facts = makers[f"make_{rule.settings.stage}"](stage, folder, run)
    stage.publish({"in": counts, "out": counts}, **facts)


def make_data(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    stage.out.mkdir()
    for name, start, count in (("train", 100, ROWS), ("test", 0, HELD_OUT), ("sft", 200, 3)):
        write_rows(stage.out / f"{name}.jsonl", pairs(start, count))
    return ROWS + HELD_OUT, {"rows": {"train": ROWS, "test": HELD_OUT, "sft": 3}, "held_out_prompts_in_train": 0}


def make_check(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    stage.out.write_text(json.dumps({"lines": ["all is well"]}))
    return 1, {}


def make_policy(stage: Stage[Any], seed: int) -> None:
    """A checkpoint of a few bytes, with what training leaves beside it."""
    stage.out.mkdir()
    (stage.out / "config.json").write_text(json.dumps({"model_type": "mistral", "seed": seed}))
    (stage.out / "tokenizer.json").write_text("{}")
    (stage.out / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      " + bytes([seed]) * 200_000)
    (stage.out / "training_args.bin").write_bytes(b"\x80\x02.")
    rows = [{"step": step, "loss": 0.7 / step, "logps/chosen": -step, "rewards/margins": 0.1 * step} for step in (1, 2)]
    (stage.out / "trainer_state.json").write_text(json.dumps({"log_history": rows}))


def make_sft(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    make_policy(stage, 1)
    return 3, {"weights": 200_000}


def make_train(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    make_policy(stage, 2 + int(stage.settings.iteration[4:]))
    return ROWS // 2, {"start": read_manifest(folder / stage.settings.policy / "policy")["policy"], "steps": 2}


def make_evaluate(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    policy = stage.settings.policy
    decodings, rng = {}, random.Random(policy)
    for decoding, temperature in (("greedy", 0.0), ("sampled", 0.7)):
        rows = []
        for each in pairs(0, HELD_OUT):
            prompt = each.prompt[-1]["content"]
            text = words(rng, prompt)
            rows.append(
                {"prompt_id": each.prompt_id, "prompt": prompt, "reward": true_reward(prompt, text), "tokens": len(text.split()),
                 "finish_reason": "stop", "text": text, "completion_id": "c"}
            )  # fmt: skip
        means = {f"mean_{name}": fmean(float(row[name]) for row in rows) for name in ("reward", "tokens")}
        decodings[decoding] = {"temperature": temperature, **means, "unjudged": 0, "rows": rows}
    about = {"name": policy, "sha256": read_manifest(folder / policy / "policy")["policy"]}
    content = {"policy": about, "seed": stage.settings.seed, "ranker": "oracle", "judge": "", "decodings": decodings}
    if policy != run.start:
        sides = [("chosen", 1.0), ("rejected", -1.0), ("sample", 2.0)]
        rows = [
            {"prompt_id": f"p{number}", "side": side, "log_ratio": sign * rng.random(), "tokens": rng.randint(2, 9),
             "reward": rng.random()}
            for number in range(HELD_OUT)
            for side, sign in sides
        ]  # fmt: skip
        content["implicit"] = {"initial_policy": run.start, **summarised(rows)}
    stage.out.write_text(json.dumps(content))
    return HELD_OUT, {"engine": {"name": "transformers", "version": "5"}}


def part(stage: Stage[Any]) -> list[OfflinePair]:
    """The iteration's offline pairs."""
    return list(stage.settings.portion.rows_of(pairs(100, ROWS)))


def samples(rows: Iterable[OfflinePair]) -> list[Completion]:
    return [
        Completion.of(
            row.prompt_id, row.prompt, f"{best_answer(row.prompt[-1]['content'])} {number}", sample=number, finish_reason="stop",
            seed=number, prompt_tokens=3, completion_tokens=4,
        )
        for row in rows
        for number in range(2)
    ]  # fmt: skip


def make_generate(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    return write_rows(stage.out, samples(part(stage))), {"engine": {"name": "transformers", "version": "5"}}


def make_rank(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    rankings = []
    for row in pairs(100, ROWS)[ROWS // 2 :]:
        answers = [*(each.answer for each in samples([row])), row.chosen_answer, row.rejected_answer]
        candidates = [
            Candidate(
                origin=each.origin, sample=place if place < 2 else None, text=each.text, completion_id=each.completion_id,
                score=1.0 / (place + 1), rank=place + 1,
            )
            for place, each in enumerate(answers)
        ]  # fmt: skip
        rankings.append(Ranking(prompt_id=row.prompt_id, prompt=row.prompt, candidates=candidates, ties=0))
    return write_rows(stage.out, rankings), {}


def make_select(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    found = [PreferencePair.joining(row, row.chosen_answer, row.rejected_answer) for row in part(stage)]
    if stage.settings.iteration != "iter0":
        rows = part(stage)
        found = [PreferencePair.joining(row, samples([row])[0].answer, row.rejected_answer) for row in rows]
    origin = "offline" if stage.settings.iteration == "iter0" else "on_policy"
    return write_rows(stage.out, found), {"origins": {f"{origin} over offline": len(found)}, "swapped": 0, "explored": 0}


def make_score(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    stage.out.mkdir()
    (stage.out / "0.jsonl").write_text('{"sum": -1.5}\n')
    return 1, {}


def make_report(stage: Stage[Any], folder: Path, run: Run) -> tuple[int, dict[str, Any]]:
    stage.out.mkdir()
    (stage.out / "summary.json").write_bytes(to_json({**summary_of(folder, str(folder)), "answers": [{"prompt": "p"}]}))
    (stage.out / "report.html").write_text("<p>a page</p>")
    return 1, {}
