"""From a raw row of a public data set to a preference pair or a demonstration: pure functions, one per schema of the hub."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Demonstration, Messages, OfflinePair, assistant, content_id, derived_seed, user
from handbook_ext.data.row_checks import (
    RawRow,
    Rules,
    Unusable,
    check_prompt,
    check_same_prompt,
    messages,
    need,
    refuse_empty,
    refuse_tie,
    row_name,
    score,
)

# A turn begins a paragraph: "Human:" inside a sentence or after a single line break is text.
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):(?=\s|\Z)")


def form_of(row: RawRow) -> str:
    """Returns the schema of a preference row: tldr, ultrafeedback, hh_rlhf, else pairs."""
    if {"info", "summaries", "choice"} <= row.keys():
        return "tldr"
    if {"instruction", "completions"} <= row.keys():
        return "ultrafeedback"
    chosen = row.get("chosen")
    transcript = row.get("prompt") is None and isinstance(chosen, str) and _TURN.match(chosen)
    return "hh_rlhf" if transcript else "pairs"


def read_pairs(
    rows: Iterable[tuple[str, RawRow]], form: str, rules: Rules, dropped: Counter[str], left_out: Counter[str]
) -> Iterator[OfflinePair]:
    """Yields the pairs of rows, each given with its place; `auto` takes the schema of the first row.

    Counts every dropped row by its reason, and the answers left out of kept ones.
    Raises UserError (file and line, mistake, remedy) for a row of another schema.
    """
    for where, row in rows:
        form = form_of(row) if form == "auto" else form
        try:
            pair = FORMS[form](where, row, rules)
        except Unusable as reason:
            dropped[str(reason)] += 1
            continue
        if form == "ultrafeedback":
            left_out["answers unrated or empty"] += len(row["completions"]) - len(pair.answers)
        yield pair


def read_demonstrations(
    rows: Iterable[tuple[str, RawRow]], rules: Rules, dropped: Counter[str], left_out: Counter[str]
) -> Iterator[Demonstration]:
    """Yields the demonstrations of rows; counts the dropped ones by reason, and the turns cut after the last answer."""
    for where, row in rows:
        try:
            made = demonstration(where, row, rules)
        except Unusable as reason:
            dropped[f"demonstration: {reason}"] += 1
            continue
        left_out["turns after the last answer"] += len(row["messages"]) - len(made.prompt) - 1
        yield made


def plain_pair(where: str, row: RawRow, rules: Rules) -> OfflinePair:
    """Returns the pair of prompt, chosen and rejected, as messages or strings (HuggingFaceH4/ultrafeedback_binarized)."""
    need(where, row, ("chosen", "rejected"), "every row needs prompt, chosen, rejected")
    prompt, chosen = _split(where, row, "chosen")
    other_prompt, rejected = _split(where, row, "rejected")
    if prompt != other_prompt:
        raise UserError(f"{where}: chosen and rejected answer different prompts; they must share all but the last message")
    check_prompt(where, prompt, rules)
    refuse_empty(where, {"chosen": chosen[0]["content"], "rejected": rejected[0]["content"]}, rules)
    scores = [score(where, name, row.get(name)) for name in ("score_chosen", "score_rejected")]
    if scores[0] is not None and scores[0] == scores[1]:
        refuse_tie(where, f"chosen and rejected have the same score {scores[0]}", rules)
    return OfflinePair.of(
        row_name(where, row.get("prompt_id")) or content_id(prompt), prompt, chosen, rejected,
        score_chosen=scores[0], score_rejected=scores[1], source=where,
    )  # fmt: skip


def rated_pair(where: str, row: RawRow, rules: Rules) -> OfflinePair:
    """Returns the best of the rated answers against a seeded random worse one, with all rated answers, best first.

    The schema is openbmb/UltraFeedback: an instruction and four completions with overall_score, 1 to 10 or none. Answers
    without a score are left out, and empty ones where the recipe drops them. The draw depends on seed and prompt alone.
    """
    need(where, row, ("instruction", "completions"), "the form ultrafeedback needs instruction and completions")
    instruction, completions = row["instruction"], row["completions"]
    sound = isinstance(completions, list) and all(
        isinstance(each, dict) and isinstance(each.get("response"), str | None) for each in completions
    )
    if not isinstance(instruction, str) or not sound:
        raise UserError(f"{where}: 'instruction' must be text and 'completions' a list of rows with 'response'; see data.form")
    if not instruction.strip():
        raise Unusable("empty prompt")
    scored = [(each.get("response") or "", score(where, "overall_score", each.get("overall_score"))) for each in completions]
    rated = [(text, score) for text, score in scored if score is not None]
    if not rules.drop_empty:
        for text, _ in rated:
            refuse_empty(where, {"rated": text}, rules)
    answers = sorted(((text, score) for text, score in rated if text.strip()), key=lambda answer: -answer[1])
    if len(answers) < 2:
        raise Unusable("fewer than two rated answers" if len(rated) < 2 else "empty answers leave fewer than two")
    best, best_score = answers[0]
    lower = [answer for answer in answers if answer[1] < best_score]
    if not lower:
        refuse_tie(where, f"all {len(answers)} rated answers have the same score {best_score}", rules)
    others = [answer for answer in lower or answers[1:] if answer[0] != best]
    if not others:
        raise Unusable("chosen equals rejected")
    prompt = user(instruction)
    prompt_id = content_id(prompt)
    # As UltraFeedback was binarized for Zephyr: a random lower one, since always the worst would make easy pairs.
    draw = random.Random(derived_seed("rejected", rules.seed, prompt_id)).random()
    other, other_score = others[int(draw * len(others))]
    return OfflinePair.of(
        prompt_id, prompt, assistant(best), assistant(other),
        score_chosen=best_score, score_rejected=other_score, answers=answers, source=where,
    )  # fmt: skip


def transcript_pair(where: str, row: RawRow, rules: Rules) -> OfflinePair:
    """Returns the two last answers of a pair of transcripts that are equal before them (Anthropic/hh-rlhf).

    A pair that differs earlier is dropped: its label is of whole dialogues, not of a completion. No scores.
    """
    need(where, row, ("chosen", "rejected"), "the form hh_rlhf needs two transcripts, chosen and rejected")
    chosen, rejected = (_turns(where, name, row[name]) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    if "user" in (chosen[-1]["role"], rejected[-1]["role"]):
        raise Unusable("a transcript ends with a Human turn")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        raise Unusable("transcripts differ before the last answer")
    if not prompt:
        raise Unusable("empty prompt")
    refuse_empty(where, {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}, rules)
    for turn in prompt:
        refuse_empty(where, {"turn": turn["content"]}, rules)
    return OfflinePair.of(content_id(prompt), prompt, chosen[-1:], rejected[-1:], source=where)


def summary_pair(where: str, row: RawRow, rules: Rules) -> OfflinePair:
    """Returns the preferred of two summaries of a post, or of a news article (openai/summarize_from_feedback). No scores."""
    need(where, row, ("info", "summaries", "choice"), "the form tldr is the configuration `comparisons`: set data.config_name")
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    texts = [each.get("text") if isinstance(each, dict) else None for each in summaries] if isinstance(summaries, list) else []
    sound = isinstance(info, dict) and all(
        isinstance(info.get(key), str | None) for key in ("post", "article", "title", "subreddit")
    )
    if not sound or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: 'info' must be a mapping and 'summaries' two rows with 'text'; see data.form")
    if not isinstance(choice, int) or isinstance(choice, bool) or choice not in (0, 1):
        raise UserError(f"{where}: 'choice' is {choice!r}, but must be 0 or 1, the preferred summary; repair or delete the row")
    kind = "post" if info.get("post") else "article"
    if not str(info.get(kind) or "").strip():
        raise Unusable("neither post nor article")
    subreddit = info.get("subreddit")
    parts = {"SUBREDDIT": f"r/{subreddit}" if subreddit else None, "TITLE": info.get("title"), kind.upper(): info[kind]}
    # The layout of the authors' code (Stiennon et al. 2020): subreddit, title and post, then "TL;DR:".
    prompt = user("\n\n".join([*(f"{name}: {text}" for name, text in parts.items() if text), "TL;DR:"]))
    # Stripped: these texts begin with a blank, which would be a token of its own.
    chosen, rejected = (str(texts[index]).strip() for index in (choice, 1 - choice))
    refuse_empty(where, {"chosen": chosen, "rejected": rejected}, rules)
    if chosen == rejected:
        raise Unusable("chosen equals rejected")
    return OfflinePair.of(content_id(prompt), prompt, assistant(chosen), assistant(rejected), source=where)


FORMS: dict[str, Callable[[str, RawRow, Rules], OfflinePair]] = {
    "pairs": plain_pair, "ultrafeedback": rated_pair, "hh_rlhf": transcript_pair, "tldr": summary_pair,
}  # fmt: skip


def demonstration(where: str, row: RawRow, rules: Rules) -> Demonstration:
    """Returns the last answer of a conversation and all before it (HuggingFaceH4/ultrachat_200k); cuts what follows it."""
    need(where, row, ("messages",), "demonstrations need `messages`, a list of turns with 'role' and 'content'")
    turns = messages(where, "messages", row["messages"])
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise Unusable("no answer")
    prompt, completion = turns[:last], turns[last : last + 1]
    if not any(turn["role"] == "user" for turn in prompt):
        raise Unusable("empty prompt")
    refuse_empty(where, {"completion": completion[0]["content"]}, rules)
    check_prompt(where, prompt, rules)
    prompt_id = row_name(where, row.get("prompt_id")) or content_id(prompt)
    return Demonstration(prompt_id=prompt_id, prompt=prompt, completion=completion, source=where)


def _turns(where: str, name: str, text: Any) -> Messages:
    """Returns the turns of a transcript, texts stripped; neighbours of one role are one turn, as chat templates want.

    A quoted dialogue whose lines begin paragraphs cannot be distinguished from turns; the data has no other marking.
    """
    parts = _TURN.split(text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise UserError(f"{where}: '{name}' does not begin with a turn, 'Human:' or 'Assistant:'; is data.form: pairs meant?")
    turns: Messages = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{said.strip()}".strip()
        else:
            turns.append({"role": role, "content": said.strip()})
    return turns


def _split(where: str, row: RawRow, name: str) -> tuple[Messages, Messages]:
    """Returns prompt and completion messages of one side of a row, given as messages or as plain strings."""
    prompt, answer = row.get("prompt"), row[name]
    if isinstance(answer, str):
        if prompt is None:
            raise UserError(f"{where}: '{name}' is a plain string, so the row needs a 'prompt'")
        return messages(where, "prompt", user(prompt) if isinstance(prompt, str) else prompt), assistant(answer)
    answer = messages(where, name, answer)
    if not answer or answer[-1]["role"] != "assistant":
        raise UserError(f"{where}: '{name}' must end with a message of role 'assistant'")
    # The messages before win over the column `prompt`, which holds the first turn alone where a dialogue has several.
    if len(answer) > 1:
        if prompt is not None:
            check_same_prompt(where, prompt, answer[:-1])
        return answer[:-1], answer[-1:]
    if prompt is None:
        raise UserError(f"{where}: '{name}' holds the answer alone, so the row needs a 'prompt'")
    return messages(where, "prompt", user(prompt) if isinstance(prompt, str) else prompt), answer
