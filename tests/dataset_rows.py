"""Rows in exactly the schemas of the public data sets, and what the loader makes of files of them."""

import json
from pathlib import Path
from typing import Any

from handbook_ext.data.offline import OfflineData, load_offline_data
from handbook_ext.recipes.settings import DataSettings

FOUR = (("fine", 7.0), ("best", 9.0), ("poor", 2.0), ("also fine", 7.0))


def uf(instruction: str, *answers: tuple[str | None, float | None]) -> dict[str, Any]:
    """A row of openbmb/UltraFeedback."""
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    completions = [
        {
            "annotations": {name: {"Rating": "N/A", "Rationale": "none", "Type": ["1"]} for name in aspects},
            "custom_system_prompt": "Be kind.", "model": f"model-{number}", "principle": "helpfulness", "response": text,
            "critique": "good", "overall_score": score, "fine-grained_score": 3.0,
        }
        for number, (text, score) in enumerate(answers)
    ]  # fmt: skip
    models = [each["model"] for each in completions]
    return {"source": "sharegpt", "instruction": instruction, "models": models, "completions": completions,
            "correct_answers": ["None"], "incorrect_answers": ["None"]}  # fmt: skip


def tldr(post: str | None, first: str, second: str, choice: Any = 0, **info: Any) -> dict[str, Any]:
    """A row of openai/summarize_from_feedback, configuration comparisons."""
    info = {"id": "t3_1", "post": post, "title": "Lost keys", "subreddit": "tifu", "site": None, "article": None} | info
    summaries = [{"text": first, "policy": "ref", "note": None}, {"text": second, "policy": "sup2", "note": "unclear"}]
    return {"info": info, "summaries": summaries, "choice": choice, "worker": "w", "batch": "batch3", "split": "train",
            "extra": {"confidence": None}}  # fmt: skip


def hh(chosen: str, rejected: str) -> dict[str, str]:
    """A row of Anthropic/hh-rlhf; H: and A: stand for the two speakers."""
    spelt = [text.replace("H:", "\n\nHuman:").replace("A:", "\n\nAssistant:") for text in (chosen, rejected)]
    return {"chosen": spelt[0], "rejected": spelt[1]}


def chat(*turns: str, system: str | None = None, prompt_id: str = "f0e3") -> dict[str, Any]:
    """A row of HuggingFaceH4/ultrachat_200k: user and assistant in turn."""
    messages = [{"content": text, "role": ("user", "assistant")[place % 2]} for place, text in enumerate(turns)]
    head = [{"content": system, "role": "system"}] if system is not None else []
    return {"prompt": turns[0], "prompt_id": prompt_id, "messages": head + messages}


def pair(number: int = 99, **more: Any) -> dict[str, Any]:
    """A row of HuggingFaceH4/ultrafeedback_binarized."""
    asked = {"content": f"ask {number}", "role": "user"}
    good, bad = ([asked, {"content": text, "role": "assistant"}] for text in ("good", "bad"))
    return {"prompt": f"ask {number}", "prompt_id": f"id{number}", "chosen": good, "rejected": bad, "messages": good,
            "score_chosen": 8.0, "score_rejected": 5.0} | more  # fmt: skip


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(folder: Path, rows: list[Any], seed: int = 1, **more: Any) -> OfflineData:
    """Loads rows as training file and one plain pair as test file; checks that every row is accounted for."""
    same_form = more.get("form", "auto") != "auto"
    paths = {"train": write(folder / "train.jsonl", rows)}
    paths["test"] = write(folder / "test.jsonl", rows[:1] if same_form else [pair()])
    if isinstance(more.get("sft"), list):
        more["sft"] = write(folder / "sft.jsonl", more["sft"])
    loaded = load_offline_data(DataSettings(**(paths | more)), seed)
    assert loaded.read == loaded.kept + sum(loaded.dropped.values())
    return loaded
