"""Evaluations as their stages left them: the rewards of a policy's completions by decoding, and who gave them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import LABELLER
from handbook_ext.objectives.metrics import Scores

Json = dict[str, Any]


class Evaluator(NamedTuple):
    """What two evaluations must share to be compared: the seed, the kind of ranker, and the id of the ranker among its kind."""

    seed: int
    ranker: str
    ranker_id: str


def read_json(path: Path) -> Json:
    """Returns the object in a JSON file; raises UserError where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); delete it and make its stage again") from error


def read_evaluation(path: Path, reward: str = "reward") -> tuple[dict[str, Scores], Evaluator]:
    """Returns the scores in an eval.json by decoding, and what evaluated them; raises UserError where the file is unusable.

    A completion without a readable verdict has the reward nan.
    """
    content = read_json(path)
    try:
        scores = {}
        for name, decoding in content["decodings"].items():
            # In the order of prompt ids, so that the arrays of two policies are aligned by prompt.
            rows = sorted((str(row["prompt_id"]), row[reward], float(row["tokens"])) for row in decoding["rows"])
            ids = tuple(row[0] for row in rows)
            numbers = np.array([(np.nan if given is None else float(given), tokens) for _, given, tokens in rows])
            known = [given for _, given, _ in rows if given is not None]
            if not known or len(set(ids)) < len(ids) or not np.isfinite(np.array(known, dtype=float)).all():
                raise ValueError(f"decoding {name} is empty, repeats a prompt, or holds nan")
            scores[name] = Scores(ids, numbers[:, 0], numbers[:, 1], float(decoding["temperature"]))
        return scores, Evaluator(int(content["seed"]), str(content["ranker"]), str(content["judge"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: is not a usable evaluation ({error!r}); delete it and evaluate again") from error


def read_labelled(path: Path) -> tuple[str, dict[str, Scores]]:
    """Returns the id of the ranker that labelled the pairs and its scores by decoding; nothing where the judge is that ranker."""
    content = read_json(path)
    if not content.get("labeller"):
        return "", {}
    scores, _ = read_evaluation(path, reward=LABELLER)
    return str(content["labeller"]), scores


def judged_by_all(policies: Mapping[str, Mapping[str, Scores]]) -> tuple[dict[str, dict[str, Scores]], int]:
    """Returns the scores of policies on the prompts of which each has a readable verdict, and how many others there are.

    Policies are compared prompt by prompt, on the same ones: a prompt that one policy lacks counts for none.
    """
    found: dict[str, dict[str, Scores]] = {name: {} for name in policies}
    dropped = 0
    for decoding in {key: None for scores in policies.values() for key in scores}:
        columns = {name: scores[decoding] for name, scores in policies.items()}
        judged = np.all([np.isfinite(one.rewards) for one in columns.values()], axis=0)
        if not judged.any():
            raise UserError(
                f"decoding {decoding}: no prompt has a readable verdict for every policy; evaluate with another judge"
            )
        dropped = max(dropped, int((~judged).sum()))
        for name, one in columns.items():
            ids = tuple(each for each, kept in zip(one.prompt_ids, judged, strict=True) if kept)
            found[name][decoding] = Scores(ids, one.rewards[judged], one.tokens[judged], one.temperature)
    return found, dropped
