"""Compares the completions of two stages, made by two engines: `python -m tests.sampling.engines_beside STAGE STAGE`.

STAGE is a folder with completions.jsonl, such as runs/tiny-selm+generate.engine-vllm+generate.temperature-0/iter1. Prints the
share that differs; where a token differs, by how many nats the policy, computed by transformers in fp32, prefers its first choice
to its second there: two engines that add in different orders may take either where that is nearly nothing. Exits with 1 where a
difference is not of that kind.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CLOSE = 1e-3  # Nats between two choices that rounding may exchange.


def main() -> int:
    """Compares, prints, and returns 1 where the engines do differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", type=Path, nargs=2, metavar="STAGE")
    parser.add_argument(
        "--policy", type=Path, help="folder of the policy that made them; by default that of the manifest's inputs"
    )
    arguments = parser.parse_args()
    one, other = (rows_of(stage) for stage in arguments.stages)
    if one.keys() != other.keys():
        raise SystemExit(
            "error: the two stages have not the same prompts; give two of one recipe that differ in the engine alone"
        )
    differing = [key for key in one if one[key]["text"] != other[key]["text"]]
    print(f"{len(differing)} of {len(one)} completions differ ({len(differing) / len(one):.2%})")
    if not differing:
        return 0
    folder = arguments.policy or policy_of(arguments.stages[0])
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    gaps = [gap_at_fork(model, tokenizer, one[key], other[key]) for key in differing]
    print(f"where they part, the policy prefers its first choice to its second by at most {max(gaps):.2g} nats")
    return int(max(gaps) > CLOSE)


def rows_of(stage: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns the completions of a stage by prompt and sample."""
    rows = [json.loads(line) for line in (stage / "completions.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(row["prompt_id"], row["sample"]): row for row in rows}


def policy_of(stage: Path) -> Path:
    """Returns the policy that a stage's manifest names."""
    inputs = json.loads((stage / "completions.manifest.json").read_text(encoding="utf-8"))["inputs"]
    return next((stage / name).resolve() for name in inputs if name.endswith("policy"))


@torch.inference_mode()
def gap_at_fork(model: Any, tokenizer: Any, one: dict[str, Any], other: dict[str, Any]) -> float:
    """Returns by how many nats the first choice leads the second where two completions part."""
    start = tokenizer.apply_chat_template(one["prompt"], add_generation_prompt=True, tokenize=False)
    ids, first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, one["text"], other["text"]))
    first, second = first + [tokenizer.eos_token_id], second + [tokenizer.eos_token_id]
    same = next(
        (place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), min(len(first), len(second))
    )
    logprobs = model(torch.tensor([ids + first[:same]])).logits[0, -1].log_softmax(-1)
    top = logprobs.topk(2).values
    return float(top[0] - top[1])


if __name__ == "__main__":
    raise SystemExit(main())
