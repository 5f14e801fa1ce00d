"""The figures of lengths in planning/published_data.py: `.venv/bin/python -m tests.planning.length_figures ROWS... TOKENIZER`.

ROWS are .jsonl files with the columns of ultrafeedback_binarized, TOKENIZER a tokenizer.json.
"""

import json
import math
import statistics
import sys
from pathlib import Path

from tokenizers import Tokenizer


def main(argv: list[str]) -> None:
    """Prints means, log-spreads, the correlation of the completions' log-lengths, and bytes per token."""
    tokenizer = Tokenizer.from_file(argv[-1])
    rows = [json.loads(line) for path in argv[:-1] for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    texts = {
        "prompt": [row["chosen"][0]["content"] for row in rows],
        "chosen": [row["chosen"][-1]["content"] for row in rows],
        "rejected": [row["rejected"][-1]["content"] for row in rows],
    }
    logs, tokens, size = {}, 0, 0
    for name, found in texts.items():
        counts = [max(1, len(each.ids)) for each in tokenizer.encode_batch(found)]
        logs[name] = [math.log(count) for count in counts]
        tokens, size = tokens + sum(counts), size + sum(len(text.encode()) for text in found)
        print(f"{name}: mean {statistics.fmean(counts):.1f}, spread {statistics.stdev(logs[name]):.2f}, {len(counts)} rows")
    print(f"correlation {statistics.correlation(logs['chosen'], logs['rejected']):.2f}, bytes per token {size / tokens:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
