"""Tasks of lm-evaluation-harness on rows made here: those of SELM's table 2 as shipped, by `include:`, and two of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval

SHIPPED = Path(lm_eval.__file__).parent / "tasks"
YAML = {
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml", "hellaswag": "hellaswag/hellaswag.yaml", "arc_challenge": "arc/arc_challenge.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml", "eq_bench": "eq_bench/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}  # fmt: skip
EMOTIONS = ("Joy", "Fear", "Anger", "Hope")


def _gsm8k(number: int) -> dict[str, Any]:
    return {"question": f"Ann has {number} pens and buys 2. How many has she?", "answer": f"{number} + 2.\n#### {number + 2}"}


def _hellaswag(number: int) -> dict[str, Any]:
    return {
        "activity_label": "Baking", "ctx_a": f"A cook takes {number} eggs.", "ctx_b": "she",
        "endings": [f"breaks them {word}." for word in ("slowly", "with a [title] spoon", "into a bowl", "and sings")],
        "label": str(number % 4),
    }  # fmt: skip


def _choices(number: int) -> dict[str, Any]:
    return {"text": [f"thing {number + k}" for k in range(4)], "label": ["A", "B", "C", "D"]}


def _arc(number: int) -> dict[str, Any]:
    return {"question": f"Which thing is number {number}?", "choices": _choices(number), "answerKey": "ABCD"[number % 4]}


def _openbookqa(number: int) -> dict[str, Any]:
    return {"question_stem": f"Thing {number} is", "choices": _choices(number), "answerKey": "ABCD"[number % 4]}


def _truthfulqa(number: int) -> dict[str, Any]:
    targets = {"choices": [f"It is {number}.", "Nobody knows.", "It is a secret."], "labels": [1, 0, 1]}
    return {"question": f"What is number {number}?", "mc1_targets": targets, "mc2_targets": targets}


def _eq_bench(number: int) -> dict[str, Any]:
    reference = {}
    for place, emotion in enumerate(EMOTIONS, start=1):
        reference |= {f"emotion{place}": emotion, f"emotion{place}_score": (number + place) % 10}
    return {"prompt": f"Scene {number}: how strong are {', '.join(EMOTIONS)}?", "reference_answer_fullscale": str(reference)}


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gsm8k_cot": _gsm8k, "hellaswag": _hellaswag, "arc_challenge": _arc, "truthfulqa_mc2": _truthfulqa, "eq_bench": _eq_bench,
    "openbookqa": _openbookqa,
}  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shipped_tasks(folder: Path, rows: int = 3, pool: int = 30) -> Path:
    """Returns a folder for include_path: the six tasks as the harness ships them, by their names, on rows made here."""
    for name, row in ROWS.items():
        held_out = write_rows(folder / f"{name}-test.jsonl", [row(number) for number in range(rows)])
        pool_of = write_rows(folder / f"{name}-train.jsonl", [row(100 + number) for number in range(pool)])
        files = {"train": pool_of, "validation": held_out, "test": held_out}
        task = {
            "include": str(SHIPPED / YAML[name]), "task": name, "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


OWN_ROWS = [
    {"question": f"What is in the {place}?", "answers": ["a book", f"{fruit} and bread", "warm socks"], "right": number % 3}
    for number, (place, fruit) in enumerate([("lamp", "plums"), ("lake", "pears"), ("bowl", "cherries"), ("book", "a list")])
]


def own_tasks(folder: Path, new_tokens: int = 8, times: int = 1) -> Path:
    """Returns a folder for include_path: `own_choice` ranks answers by log-likelihood, `own_text` generates.

    Each row is there a number of times.
    """
    files = {
        "test": write_rows(folder / "rows.jsonl", OWN_ROWS * times),
        "train": write_rows(folder / "shown.jsonl", OWN_ROWS[:2]),
    }
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "fewshot_split": "train",
              "doc_to_text": "Q: {{question}}\nA:"}  # fmt: skip
    mean = {"aggregation": "mean", "higher_is_better": True}
    choice = {
        **shared, "task": "own_choice", "output_type": "multiple_choice", "doc_to_choice": "{{answers}}",
        "doc_to_target": "{{right}}", "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
        "metadata": {"version": 7.0}, "tag": ["own_tag"],
    }  # fmt: skip
    text = {
        **shared, "task": "own_text", "output_type": "generate_until", "doc_to_target": "{{answers[right]}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": new_tokens},
        "metric_list": [{"metric": "exact_match", **mean}],
    }  # fmt: skip
    for task in (choice, text):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    return folder
