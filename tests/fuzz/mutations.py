"""What users' files and words could be: real recipes and rows with something wrong in them, and names that nobody expects."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from tests.recipe_folder import ROOT
from tests.recipes.hostile_names import words

RECIPES = [ROOT / "recipes" / name for name in (
    "tiny/selm.yaml", "tiny/dpo.yaml", "tiny/base.yaml", "tiny/best-sera.yaml", "tiny/sera-lora.yaml", "tiny/oaif.yaml",
    "tiny/srlm.yaml", "smollm2/base.yaml", "zephyr/base.yaml", "llama3/base.yaml",
)]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, 1e-300, 1e300, float("inf"), float("nan"), 10**17, "", "x", "1e5", "null",
    "12:30", "=", "<<",
    "a b", "a\nb", "a\0b", "é😀", "\x85", "../x", "/", "~", "$(touch PWND)", "x" * 3000, [], [[]], [0], ["a", None], {},
    {"a": {}},
    {"a": [{"b": 1}]},
]  # fmt: skip
# Pieces of YAML that no dump makes.
PIECES = [
    "<<: {beta: 1}", "=: 1", "a: &x [*x]", "? [a]\n: b", "seed: 0x", "seed: 1_", "!!python/name:os.system x", "--- a",
    "...", "\t",
    "train: [", "{", "*a", "&a", "|", "a: |\n  b", "'", '"', "# c", "%YAML 9", "iterations: {iter99999999999: {}}",
    "seed: 1:30:30",
    "variants: {iter1: {}}", "variants: {b: 1}", "train: !t {}", "null: 1", "1: 2", "base: fuzzed.yaml", "base: ../tiny",
    "base: /",
    "seed: " + "9" * 5000, "a: " + "[" * 2000, "\ufeff", "report: {title: !!binary aGk=}",
    "benchmarks: {sets: {x: {source: none}}}",
]  # fmt: skip
TURNS = [{"role": "user", "content": "Say it."}]
ROWS: list[dict[str, Any]] = [
    {"prompt": f"Question {number}?", "chosen": f"A good answer {number}.", "rejected": f"A bad answer {number}."}
    for number in range(3)
] + [
    {"prompt_id": str(number), "prompt": "Say it.", "chosen": [*TURNS, {"role": "assistant", "content": f"yes {number}"}],
     "rejected": [*TURNS, {"role": "assistant", "content": "no"}], "score_chosen": 2.0, "score_rejected": 1.0}
    for number in range(3)
]  # fmt: skip
RATED = [{"response": f"r{place}", "overall_score": float(place)} for place in range(4)]
SCHEMAS: list[list[dict[str, Any]]] = [
    ROWS[:3],
    ROWS[3:],
    [{"chosen": f"\n\nHuman: hi {n}\n\nAssistant: yes", "rejected": f"\n\nHuman: hi {n}\n\nAssistant: no"} for n in range(3)],
    [{"instruction": f"Do {n}", "completions": RATED} for n in range(3)],
    [
        {"info": {"id": str(n), "post": "Long text", "title": "t", "subreddit": "s"}, "choice": 0,
         "summaries": [{"text": f"one {n}"}, {"text": "two"}]}
        for n in range(3)
    ],
]  # fmt: skip


def changed(draw: Callable[..., Any], value: Any) -> Any:
    """The nested value with one place removed, replaced, doubled or called otherwise."""
    places = list(_places(value, ()))
    if not places:
        return draw(st.sampled_from(VALUES))
    *above, last = draw(st.sampled_from(places))
    copy = json.loads(json.dumps(value, default=str))
    holder = copy
    for name in above:
        holder = holder[name]
    how = draw(st.sampled_from(["value", "value", "remove", "rename", "double"]))
    if how == "value":
        holder[last] = draw(st.sampled_from(VALUES))
    elif how == "remove":
        del holder[last]
    elif how == "double" and isinstance(holder, list):
        holder.append(holder[last])
    elif isinstance(holder, dict):
        holder[draw(st.sampled_from([f"{last}s", "x", "", "é", " "]))] = holder.pop(last) if how == "rename" else holder[last]
    return copy


def _places(value: Any, place: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """All places inside of a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, each in inner for found in [(*place, name), *_places(each, (*place, name))]]


@st.composite
def damaged(draw: Callable[..., Any], content: bytes) -> bytes:
    """Bytes of which some were lost, doubled, exchanged or added."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        new = draw(st.one_of(st.just(b""), st.binary(max_size=4), st.just(content[start:end] * 2), st.just(b"\xff\xfe\0")))
        content = content[:start] + new + content[end:]
    return content if draw(st.integers(0, 9)) else content[: len(content) // 2]


@st.composite
def recipes(draw: Callable[..., Any]) -> bytes:
    """The text of a recipe with a mistake in it, or some."""
    text = draw(st.sampled_from(RECIPES)).read_text(encoding="utf-8")
    how = draw(st.sampled_from(["values", "values", "piece", "bytes"]))
    if how == "bytes":
        return bytes(draw(damaged(text.encode())))
    if how == "piece":
        lines = text.splitlines()
        place = draw(st.integers(0, len(lines)))
        return "\n".join([*lines[:place], draw(st.sampled_from(PIECES)), *lines[place:]]).encode("utf-8", "surrogatepass")
    values = yaml.safe_load(text)
    for _ in range(draw(st.integers(1, 2))):
        values = changed(draw, values)
    return yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def data_files(draw: Callable[..., Any]) -> tuple[str, bytes]:
    """The name and content of a data file with a mistake in it, or some."""
    rows: Any = draw(st.sampled_from(SCHEMAS))
    for _ in range(draw(st.integers(0, 2))):
        rows = changed(draw, rows)
    suffix = draw(st.sampled_from([".jsonl", ".jsonl", ".json", ".parquet"]))
    content = _file(rows, suffix)
    if content is None:
        suffix, content = ".jsonl", _file(rows, ".jsonl") or b""
    return f"train{suffix}", draw(damaged(content)) if draw(st.booleans()) else content


def _file(rows: Any, suffix: str) -> bytes | None:
    """The file of that kind that holds the rows; None where no Parquet file can hold them."""
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])).encode()
    try:
        table, out = pa.Table.from_pylist(rows), io.BytesIO()
        pq.write_table(table, out)
    except (pa.ArrowException, AttributeError, TypeError, OverflowError, ValueError):
        return None
    return out.getvalue()


GOALS = ["tiny-selm", "tiny-selm-iter1", "tiny-selm-seeds", "tiny-selm-plan", "tiny-selm-why", "tiny-selm-check", "tiny-dpo-eval",
         "tiny-selm-iter1-push", "tiny-selm-explain", "tiny-selm-submit", "table-x", "tune-x", "tables", "matrix", "compare",
         "help"]  # fmt: skip
SETTINGS = ["train.beta=", "seed=", "report.title=", "model.lora=", "data.train=", "iterations.iter1=", "x=", "train.report_to=",
            "benchmarks.sets.x.source=", "variants.a=", "base=", "generate.engine=", "launch=", "iterations="]  # fmt: skip
NUMBERS = st.sampled_from(
    ["0", "1", "2", "9", "99", "100", "9999", "10000", "-1", "1e3", "0x1", "\u0661", "", " 2", "2 ", "2;id", "9" * 5000]
)
ANY = words().filter(lambda text: "\0" not in text)


@st.composite
def commands(draw: Callable[..., Any]) -> tuple[list[str], dict[str, str]]:
    """Goals of make, and its variables."""
    goal = st.one_of(st.sampled_from(GOALS), st.tuples(st.sampled_from(GOALS), ANY).map("-".join), ANY)
    value = st.tuples(st.sampled_from(SETTINGS), st.one_of(ANY, st.sampled_from([json.dumps(each) for each in VALUES]))).map(
        "".join
    )
    drawn = {
        "RUNS": st.one_of(st.sampled_from(["a/b", "é", "x/", "recipes", "a//b", "-x", "", "a=b", "x" * 300]), ANY),
        "SET": st.one_of(value, st.tuples(value, value).map(" ".join), ANY), "DATA": ANY, "LAUNCH": ANY, "GPUS": NUMBERS,
        "SEEDS": NUMBERS, "UNTIL": ANY, "BESIDE": ANY, "VRAM": NUMBERS, "RAM": NUMBERS, "THREADS": NUMBERS, "SETS": ANY,
        "OF": ANY, "MODEL": ANY, "WRITE": st.one_of(ANY, ANY.map(lambda name: f"recipes/mine/{name}.yaml")), "REPO": ANY,
        "CLUSTER": ANY, "T": ANY,
    }  # fmt: skip
    names = draw(st.lists(st.sampled_from(sorted(drawn)), max_size=2, unique=True))
    return draw(st.lists(goal, min_size=1, max_size=2)), {name: draw(drawn[name]) for name in names}
