"""A run that a judge behind a misbehaving endpoint labels: no verdict is lost or counted twice, and no file holds the key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.judging.misbehaving_server import Behaviour, MisbehavingServer, hangs_up, raw, status
from tests.workspace import MICRO, Workspace, changed

KEY = "sk-very-secret-0123456789"
MISTAKES: list[Behaviour] = [status(429, Retry_After="0"), status(500), raw('{"choices": [{"mess'), hangs_up]


def points(question: str) -> str:
    """Points by the length of the answer; every seventh reply cannot be read."""
    found = re.search(r"<answer>\n(.*)\n</answer>", question, re.DOTALL)
    assert found is not None
    return "I cannot say." if len(found[1]) % 7 == 3 else f"[[{1 + len(found[1]) % 10}]]"


def test_the_judge_over_a_misbehaving_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.002)
    server = MisbehavingServer(points, lambda question, attempt: MISTAKES[len(question) % 4] if attempt == 0 else None)
    judge = f"judge: {{base_url: '{server.url}', input_price: 1, output_price: 1, timeout: 5}}"
    recipe = changed(MICRO, train="alpha: 0.1") + f"rank: {{ranker: judge, model: m, {judge}}}\n"
    workspace = Workspace(tmp_path, recipe)
    goal = "runs/mine-micro/iter1/rankings.jsonl"
    workspace.run(goal)
    run = tmp_path / "runs" / "mine-micro"
    rows = [json.loads(line) for line in (run / "iter1/rankings.jsonl").read_text().splitlines()]
    manifest = json.loads((run / "iter1/rankings.manifest.json").read_text())
    candidates = [each for row in rows for each in row["candidates"]]
    assert len(rows) == 24 and all(len(row["candidates"]) == 4 for row in rows)
    for each in candidates:
        assert each["failed"] == (len(each["text"]) % 7 == 3)
        if not each["failed"]:
            assert each["score"] == 1 + len(each["text"]) % 10
    asked = server.log.count()
    facts = manifest["judge"]
    assert facts["replies"] == facts["asked"] == len(asked) and set(asked.values()) == {2}
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (100 * len(asked), 10 * len(asked))
    assert facts["cost_usd"] == pytest.approx(110 * len(asked) / 1e6)
    assert manifest["failed"] == sum(each["failed"] for each in candidates) > 0
    # Made again, nothing is asked again.
    for name in ("rankings.jsonl", "rankings.manifest.json"):
        (run / "iter1" / name).unlink()
    workspace.run(goal)
    assert server.log.count() == asked
    again = json.loads((run / "iter1/rankings.manifest.json").read_text())
    assert (
        again["sha256"] == manifest["sha256"] and again["judge"]["replies"] == facts["replies"] and again["judge"]["asked"] == 0
    )
    workspace.run("runs/mine-micro/iter1/pairs.jsonl")
    server.close()
    for path in (path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()):
        assert KEY.encode() not in path.read_bytes(), path
