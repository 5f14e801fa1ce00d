"""The tokens that the stages of a run will see of some rows, rendered by the functions that those stages use, before they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Demonstration, Messages, OfflinePair, PreferencePair, assistant
from handbook_ext.graph.stages import CheckStage, Limits
from handbook_ext.judging.reward_model import judged_ids
from handbook_ext.planning.first_lines import TooLong
from handbook_ext.policies.chat import ChatEncoder, Conversation
from handbook_ext.policies.encoding import encode_pairs
from handbook_ext.policies.models import generation_ends, load_tokenizer, loading_errors
from handbook_ext.policies.text_tokens import TextTokens
from handbook_ext.recipes.settings import RankSettings
from handbook_ext.sampling.generation import jobs_of
from handbook_ext.training.scoring import TextGroup, encode_groups
from handbook_ext.training.sft_examples import IGNORED, sft_examples

SAMPLE = 1000  # Rows whose truncation is counted, evenly spaced over the data.
UNCUT = 10**9  # Tokens: no row is as long.


@dataclass(frozen=True)
class Cut:
    """Of how many sampled rows the limits cut the prompt, a completion, either, or drop the row as too long."""

    iterations: list[str]
    rows: int
    prompts: int
    completions: int
    either: int
    dropped: int
    long: TooLong

    @property
    def line(self) -> str:
        """Returns the shares in words."""
        drops = f", {self.dropped / self.rows:.1%} dropped as too long" if self.dropped else ""
        return (
            f"{', '.join(self.iterations)}: of {self.rows:,} rows looked at, the prompt is cut in {self.prompts / self.rows:.1%} "
            f"and {self.completions / self.rows:.1%} a completion{drops}"
        )

    def record(self) -> dict[str, Any]:
        """Returns the shares as check.json has them."""
        shares = {name: getattr(self, name) / self.rows for name in ("prompts", "completions", "either", "dropped")}
        return {"iterations": self.iterations, "rows": self.rows, **shares, "long": self.long.record()}


class Opened(NamedTuple):
    """A checkpoint's tokenizer with the recipe's template, and the ids at which its generation_config stops."""

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]

    def encoder(self, limits: Limits) -> ChatEncoder:
        """Returns a new encoder under the limits, as the stages open one."""
        return ChatEncoder(self.tokenizer, **limits.model_dump(), generation_ends=self.ends)


def checked_tokens(settings: CheckStage, rows: Sequence[OfflinePair], fetched: Path | None = None) -> list[Cut]:
    """Returns what truncation will do to the rows, under each of the run's limits.

    fetched: the checkpoint, where a stage of the run has fetched it; None is the recipe's.

    Raises UserError where the stages would see different tokens of a prompt, a begin or end token is missing or doubled, the
    template is another one than the checkpoint was tuned with, or truncation hits more rows than data.max_truncated.
    """
    source, here = str(fetched or settings.model.name_or_path), fetched is not None
    tokenizer = load_tokenizer(source, settings.model, trained_here=here)
    opened = Opened(tokenizer, generation_ends(source, settings.model, trained_here=here))
    examples = shown_rows(rows)
    if settings.sft is None and fetched is None:  # What was fetched has the recipe's template.
        refuse_other_template(settings, tokenizer, examples)
    for row in examples:
        refuse_wrong_ends(opened, row, source)
    for limits, _ in limits_of_iterations(settings):
        for row in examples:
            refuse_different_prompts(prompts_by_stage(opened, row, limits, settings), row)
    for rank in settings.rankers:
        refuse_wrong_judging(rank, examples)
    cuts = [count_cuts(opened, rows, limits, names) for limits, names in limits_of_iterations(settings)]
    for cut in cuts:
        if settings.max_truncated is not None and cut.either > settings.max_truncated * cut.rows:
            raise UserError(
                f"{cut.line}; data.max_truncated allows {settings.max_truncated:.1%} of the rows; raise train.max_length or "
                "max_prompt_length, or the limit"
            )
    return cuts


def shown_rows(rows: Sequence[OfflinePair]) -> list[OfflinePair]:
    """Returns the longest row and the one of median length, by characters of prompt and chosen."""
    ranked = sorted(rows, key=lambda row: sum(len(turn["content"]) for turn in (*row.prompt, *row.chosen)))
    return [ranked[-1], ranked[len(ranked) // 2]]


def limits_of_iterations(settings: CheckStage) -> list[tuple[Limits, list[str]]]:
    """Returns each different limit on lengths with the iterations that have it."""
    found: dict[Limits, list[str]] = {}
    for name, each in settings.iterations.items():
        found.setdefault(each.limits, []).append(name)
    return list(found.items())


def prompts_by_stage(opened: Opened, row: OfflinePair, limits: Limits, settings: CheckStage) -> dict[str, list[int]]:
    """Returns the token ids of a row's prompt by the stages that must see the same; {} where it is dropped as too long.

    Where the recipe asks for SELM's way of encoding, training reads other tokens than generation, and is not compared with it.
    """
    where = row.source or row.prompt_id
    encoder = opened.encoder(limits)
    ids = encoder.prompt_ids(row.prompt, where)
    if ids is None:
        return {}
    [job], _ = jobs_of([row], opened.encoder(limits), samples=1, seed=settings.seed, iteration="")
    [evaluated] = opened.encoder(limits).prompts([(row.prompt, where)])
    found = {"generate": job.prompt_ids, "evaluate": evaluated or []}
    if not limits.legacy_template and limits.truncation == "always":
        group = TextGroup(row.prompt_id, row.prompt)
        group.add(row.chosen_answer)
        found["score"] = encode_groups([group], opened.encoder(limits)).group(0).prompt
        # Without the row's second completion: one that truncation makes equal to the first would leave no pair.
        other = assistant("" if row.chosen_answer.text.strip() else "a")
        pair = PreferencePair.of(row.prompt_id, row.prompt, row.chosen, other)
        found["train"] = encode_pairs([pair], opened.encoder(limits), explore=False).pairs[0].prompt
    if settings.sft is not None and not encoder.cut_prompts:
        keep = {"special_tokens": limits.special_tokens, "generation_ends": opened.ends}
        tuning = ChatEncoder(opened.tokenizer, settings.sft.max_length, long_prompts="truncate", **keep)
        plain = settings.sft.model_copy(update={"packing": False, "packing_strategy": "bfd", "loss_on": "completion"})
        demonstration = Demonstration(prompt_id=row.prompt_id, prompt=row.prompt, completion=row.chosen, source=row.source)
        [example] = sft_examples([demonstration], tuning, plain).rows
        if not tuning.cut_prompts:
            found["sft"] = example["input_ids"][: example["labels"].count(IGNORED)]
    return found


def refuse_different_prompts(prompts: dict[str, list[int]], row: OfflinePair) -> None:
    """Raises UserError where one stage sees other tokens of a prompt than the others."""
    for name, ids in prompts.items():
        first = next(iter(prompts))
        if ids != prompts[first]:
            place = next((at for at, (a, b) in enumerate(zip(ids, prompts[first], strict=False)) if a != b), len(ids))
            raise UserError(
                f"{row.source or row.prompt_id}: {name} would see other tokens of the prompt than {first}, from token "
                f"{place + 1} on ({len(ids)} against {len(prompts[first])} tokens); use a chat template that renders a prompt "
                "alone as it does in a conversation"
            )


def refuse_wrong_ends(opened: Opened, row: OfflinePair, source: str) -> None:
    """Raises UserError where a prompt has not the one BOS that its tokenizer adds, or a completion not one end token."""
    encoder = ChatEncoder(opened.tokenizer, UNCUT, generation_ends=opened.ends)
    [(prompt, [ids])] = encoder.whole_ids([Conversation(row.prompt, [row.chosen], [], row.source)])
    refuse_wrong_bos(opened.tokenizer, prompt, source, row)
    ends = encoder.end_ids()
    # As rendered: the encoder stops at the first end token, which a prompt of several turns does not.
    rendered = encoder.text.ids([encoder.text.render([*row.prompt, *row.chosen])])[0]
    tail = rendered[: 1 + max((at for at, token in enumerate(rendered) if token in ends), default=0)]
    # Phi-3's template writes its end of a turn, and behind a whole conversation EOS: two tokens, of which the first counts.
    doubled = len(tail) > 1 and tail[-1] in ends and tail[-2] == tail[-1]
    if doubled or ids[-1:] == [] or ids[-1] not in ends:
        what = "two end tokens" if doubled else "no end token"
        raise UserError(
            f"{source}: the completion of {row.source or row.prompt_id} ends with {what}; "
            "use a chat template whose turns end with one of them (model.chat_template), and texts without it"
        )


def refuse_wrong_bos(tokenizer: Any, ids: list[int], source: str, row: OfflinePair) -> None:
    """Raises UserError where ids have not exactly one BOS, at their head, though the tokenizer adds one to a text."""
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return
    # Where one token begins and ends, those within are ends of turns.
    count = ids.count(bos) if bos != tokenizer.eos_token_id else 1 + (ids[1:2] == [bos])
    if ids[:1] != [bos] or count != 1:
        raise UserError(
            f"{source}: the prompt of {row.source or row.prompt_id} is rendered with {count if ids[:1] == [bos] else 'no'} BOS "
            "at its head, and the tokenizer adds exactly one; use a chat template that writes it once, and texts without it"
        )


def refuse_other_template(settings: CheckStage, tokenizer: PreTrainedTokenizerBase, examples: Sequence[OfflinePair]) -> None:
    """Raises UserError where the recipe's template renders otherwise than that with which the checkpoint was tuned."""
    source = str(settings.model.name_or_path)
    if settings.model.chat_template is None:
        return
    try:
        own = load_tokenizer(source, settings.model.model_copy(update={"chat_template": None}), trained_here=False)
    except UserError:
        return  # It has none, which is why the recipe gives one.
    for row in examples:
        if _rendered(tokenizer, row) != _rendered(own, row):
            raise UserError(
                f"model.chat_template {settings.model.chat_template!r} renders {row.source or row.prompt_id} otherwise than the "
                f"template of {source}, with which it was tuned; set chat_template: null, or tune it to the other one (sft)"
            )


def refuse_wrong_judging(rank: RankSettings, examples: Sequence[OfflinePair]) -> None:
    """Raises UserError where a reward model's template leaves out a text, or writes not exactly one BOS."""
    source = str(rank.model)
    with loading_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=rank.revision, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise UserError(f"rank.model: the tokenizer of {source} has no chat template; use a reward model that has one")
    for row in examples:
        [ids] = judged_ids(TextTokens(tokenizer), [(row.prompt, row.chosen_answer.text)])
        refuse_wrong_bos(tokenizer, ids, f"rank.model: {source}", row)
        rendered = str(tokenizer.apply_chat_template([*row.prompt, *row.chosen], tokenize=False))
        for turn in (row.prompt[-1], row.chosen[-1]):
            if turn["content"].strip() not in rendered:
                raise UserError(
                    f"rank.model: the chat template of {source} leaves out the last turn of the {turn['role']} "
                    f"({row.source or row.prompt_id}); use a reward model whose template writes both"
                )


def count_cuts(opened: Opened, rows: Sequence[OfflinePair], limits: Limits, iterations: list[str]) -> Cut:
    """Returns how many of evenly spaced rows the limits cut; raises UserError for a prompt that leaves no room."""
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    encoder = opened.encoder(limits)
    prompts = completions = either = dropped = 0
    sizes = []
    for row in sample:
        before = encoder.cut_prompts, encoder.cut_completions
        conversation = Conversation(row.prompt, [row.chosen, row.rejected], [], row.source or row.prompt_id)
        sizes += [(len(whole), max(map(len, answers))) for whole, answers in encoder.whole_ids([conversation])]
        [(ids, _)] = encoder.encode([conversation])
        if ids is None:
            dropped += 1
            continue
        cut = encoder.cut_prompts > before[0], encoder.cut_completions > before[1]
        prompts, completions, either = prompts + cut[0], completions + cut[1], either + any(cut)
    return Cut(iterations, len(sample), prompts, completions, either, dropped, TooLong.of(sizes, limits))


def _rendered(tokenizer: PreTrainedTokenizerBase, row: OfflinePair) -> tuple[str, str]:
    """Returns the text of a prompt as for generation, and of the conversation, whose last line break means nothing."""
    whole: Messages = [*row.prompt, *row.chosen]
    prompt = tokenizer.apply_chat_template(row.prompt, tokenize=False, add_generation_prompt=True)
    return str(prompt), str(tokenizer.apply_chat_template(whole, tokenize=False)).rstrip("\n")
