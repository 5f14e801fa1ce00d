"""What differs between the token ids of the two sides, row by row, each with its reason; and how far numbers are apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tests.referee.expected import Layout
from tests.referee.records import PARTS, Ids, Step

HEADER = "role header: they score it as the completion's first tokens, we have it at the end of the prompt"
SECOND_END = "second end: they score the template's line break and one more EOS behind the end of the turn, we stop at the first"
TWO_BOS = "BOS: they put one in front of the template's own, we have one"
BOS_INSIDE = (
    "BOS: they have one within the conversation, scored before the answer's role header; the template is applied to it alone"
)
BOS_LOST = "BOS: their cut prompt begins without one, ours keeps it"
BOS_KEPT = "BOS: our cut prompt begins without one, theirs keeps it"
THEIR_CUT = "prompt: theirs is cut, ours is whole"
OUR_CUT = "prompt: ours is cut, theirs is whole (they cut where it exceeds max_length with the longer of chosen and rejected)"
BOTH_CUT = "prompt: both are cut, at other places: they keep the end alone, we the beginning as well and room for the role header"
LONGER_ANSWER = "{}: we keep more of it (they cut all to max_length - max_prompt_length, role header included)"
SHORTER_ANSWER = "{}: they keep more of it (theirs may exceed max_length, or its prompt is shorter)"
OVERLONG = "explored: theirs exceeds max_length with its prompt, since its length is not checked"
UNREAD = "row: they train on it, our loader drops it: {}"
DROPPED = "pair: they train on chosen equal to rejected, we drop it"
CUT_EQUAL = "pair: truncation, or the template, gives chosen and rejected the same token ids, and we drop it"
UNEXPLAINED = "{}: NOT EXPLAINED by the reasons above"


def unequal_parts(ours: Ids, theirs: Ids) -> list[str]:
    """Returns which of prompt, chosen, rejected and explored differ."""
    return [part for part in PARTS if getattr(ours, part) != getattr(theirs, part)]


def reasons(ours: Ids, theirs: Ids, layout: Layout, max_length: int, whole: list[int]) -> list[str]:
    """Returns why the ids of a row differ; a difference without a known reason is UNEXPLAINED.

    whole: the row's prompt before any cut, without BOS and without the role header of the answer.
    """
    found = _prompt_reasons(ours.prompt, theirs.prompt, layout, whole)
    around: set[str] = set()
    for part in PARTS[1:]:
        (own, mine), (text, other) = (_bare(getattr(ids, part), layout) for ids in (ours, theirs))
        around |= other - mine
        if own != text:
            found.append(_longer(own, text, LONGER_ANSWER, SHORTER_ANSWER).format(part))
    found += sorted(around)
    if len(theirs.prompt) + len(theirs.explored) > max_length >= len(ours.prompt) + len(ours.explored):
        found.append(OVERLONG)
    return found


def _prompt_reasons(mine: list[int], other: list[int], layout: Layout, whole: list[int]) -> list[str]:
    """Returns why two prompts differ, besides the role header."""
    found = [TWO_BOS] * (other[:2] == [layout.bos] * 2 != mine[:2])
    starts = [ids[:1] == [layout.bos] for ids in (mine, other)]
    found += [BOS_LOST] * (starts[0] > starts[1]) + [BOS_KEPT] * (starts[0] < starts[1])
    size = len(layout.header)
    own = mine[:-size] if mine[-size:] == layout.header else mine
    own, text = ([token for token in ids if token != layout.bos] for ids in (own, other))
    if own == text:
        return found
    if not (_is_cut_of(own, whole) and text == whole[len(whole) - len(text) :]):
        return [*found, UNEXPLAINED.format("prompt")]
    return [*found, THEIR_CUT if own == whole else OUR_CUT if text == whole else BOTH_CUT]


def _is_cut_of(ids: list[int], whole: list[int]) -> bool:
    """Returns whether ids are a beginning and an end of the whole, either of them possibly empty."""
    missing = len(whole) - len(ids)
    return missing >= 0 and any(ids == whole[:kept] + whole[kept + missing :] for kept in range(len(ids) + 1))


def _bare(ids: list[int], layout: Layout) -> tuple[list[int], set[str]]:
    """Returns a completion without what surrounds the text and its EOS, and the reasons for which that may differ."""
    around, text = set(), ids
    if text[:1] == [layout.bos]:
        around, text = {BOS_INSIDE}, text[1:]
    size = len(layout.header)
    if text[:size] == layout.header:
        around, text = around | {HEADER}, text[size:]
    # Truncation may leave a part of what follows.
    for count in range(len(layout.tail), 0, -1):
        ending = [layout.eos, *layout.tail[:count]]
        if text[-len(ending) :] == ending:
            return text[:-count], around | {SECOND_END}
    return text, around


def _longer(own: list[int], text: list[int], longer: str, shorter: str) -> str:
    """Returns which of two texts is the longer, where one begins with the other."""
    common = min(len(own), len(text))
    if own[:common] != text[:common]:
        return UNEXPLAINED
    return longer if len(own) > len(text) else shorter


def largest_difference(ours: Iterable[float], theirs: Iterable[float], *, relative: bool) -> float:
    """Returns the largest absolute or relative difference of two lists of numbers."""
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs:
        return float("nan")
    return max(abs(a - b) / (max(abs(a), abs(b), 1e-30) if relative else 1) for a, b in pairs)


def step_losses(steps: Sequence[Step], micro_batches: int) -> list[float]:
    """Returns the mean loss of each optimizer step, which has so many micro-batches."""
    means = [sum(step.losses) / len(step.losses) for step in steps]
    return [sum(means[i : i + micro_batches]) / micro_batches for i in range(0, len(means), micro_batches)]


def gradient_norms(history: Iterable[Mapping[str, float]]) -> list[float]:
    """Returns the gradient's norm in each step of a trainer's log, before clipping."""
    return [float(line["grad_norm"]) for line in history if "grad_norm" in line]


def log_probs(steps: Sequence[Step]) -> list[float]:
    """Returns all log-probs of policy and reference, in order."""
    return [value for step in steps for row in step.logprobs for value in row]
