"""Our side: the project's own functions, from rows to pairs, token ids, and the losses of a training run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Completion, OfflinePair, PreferencePair, Ranking
from handbook_ext.data.row_checks import Rules
from handbook_ext.data.schemas import read_pairs
from handbook_ext.judging.ranker import Verdict, candidates_of, ranking
from handbook_ext.objectives.batching import BatchPlan, Slot
from handbook_ext.objectives.objective import Objective
from handbook_ext.policies.chat import ChatEncoder
from handbook_ext.policies.encoding import EncodedPairs, encode_pairs
from handbook_ext.recipes.settings_stages import SelectSettings
from handbook_ext.selection.judged import best_and_worst
from handbook_ext.selection.rules import Material, select_pairs
from handbook_ext.training.from_rows import sharing_prefixes
from handbook_ext.training.scoring import score_shard
from handbook_ext.training.trainer import PreferenceTrainer
from tests.referee.material import RawPair, grade
from tests.referee.records import Ids, Step

LEGACY = {"legacy_template": True, "truncation": "as_needed"}
POLICY = "the policy that training starts from"


def offline_pairs(rows: Sequence[RawPair], *, ties: str = "keep") -> tuple[list[OfflinePair], Counter[str]]:
    """Returns the rows as the loader reads them, the row's number as prompt id, and its counts of dropped rows."""
    dropped: Counter[str] = Counter()
    numbered = [(f"row {row.number}", row.columns | {"prompt_id": str(row.number)}) for row in rows]
    return list(read_pairs(numbered, "auto", Rules(seed=0, ties=ties, drop_empty=True), dropped, Counter())), dropped


def ranked(offline: Sequence[OfflinePair], rows: Sequence[RawPair]) -> list[Ranking]:
    """Returns the candidates of each pair with their ranks by the fixed scorer."""
    found = []
    for pair in offline:
        # Generation strips what it decodes, as the official code does.
        text = rows[int(pair.prompt_id)].sample.strip()
        sample = Completion.of(
            pair.prompt_id, pair.prompt, text, sample=0, finish_reason="stop", seed=0, prompt_tokens=1, completion_tokens=1
        )
        candidates = candidates_of([sample], pair)
        verdicts = [Verdict(grade(pair.prompt[-1]["content"], candidate.text)) for candidate in candidates]
        found.append(ranking(pair.prompt_id, pair.prompt, list(zip(candidates, verdicts, strict=True))))
    return found


def chosen_texts(rankings: Sequence[Ranking]) -> dict[int, tuple[str, str, str]]:
    """Returns the texts of chosen, rejected and explored sample by rule A, by row; pairs of one text included."""
    found = {}
    for row in rankings:
        chosen, rejected = best_and_worst(row)
        found[int(row.prompt_id)] = (chosen.text, rejected.text, row.candidates[0].text)
    return found


def selected_pairs(offline: Sequence[OfflinePair], rankings: Sequence[Ranking]) -> dict[int, PreferencePair]:
    """Returns the pairs that a run would train on, by row."""
    selected = select_pairs(Material(offline, rankings=rankings), SelectSettings(rule="best_and_worst", explore=True))
    return {int(pair.prompt_id): pair for pair in selected.pairs}


def encoded(
    tokenizer: PreTrainedTokenizerBase, pairs: dict[int, PreferencePair], limits: dict[str, int], settings: dict[str, Any]
) -> dict[int, EncodedPairs]:
    """Returns each pair as token ids; pairs that truncation makes equal are left out."""
    found = {}
    for number, pair in pairs.items():
        encoder = ChatEncoder(tokenizer, **limits, long_prompts="truncate", **settings)
        try:
            found[number] = encode_pairs([pair], encoder, explore=True)
        except UserError as error:
            if "no preference pair is left" not in str(error):
                raise
    return found


def token_ids(pair: EncodedPairs) -> Ids:
    """Returns the ids of the one pair."""
    (ids,) = pair.pairs
    return Ids(ids.prompt, ids.chosen, ids.rejected, ids.explore or [])


@dataclass(frozen=True, kw_only=True)
class Recording(Objective):
    """An objective that notes what it is given and what it returns."""

    steps: list[Step] = field(default_factory=list, compare=False)

    def losses(
        self, logprobs: tuple[Tensor, Tensor, Tensor], reference: Tensor, tokens: tuple[Tensor, Tensor], explored: Tensor
    ) -> Tensor:
        """Returns the losses of the objective."""
        losses = super().losses(logprobs, reference, tokens, explored)
        self.steps.append(Step.of([*logprobs, *reference], losses))
        return losses


@dataclass(frozen=True)
class SameOrder(BatchPlan):
    """A plan of one epoch whose micro-batches are given: those that the official trainer drew."""

    micro_batches: list[list[int]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Returns optimizer steps."""
        return len(self.micro_batches) * self.micro_batch_size // self.global_batch_size

    def epoch(self, number: int) -> list[list[Slot]]:
        """Returns the given micro-batches; every pair of a step counts the same."""
        return [[Slot(index, 1 / self.global_batch_size) for index in batch] for batch in self.micro_batches]


def train(
    model: PreTrainedModel, pairs: dict[int, EncodedPairs], batches: Sequence[Sequence[int]], arguments: dict[str, Any],
    objective: Recording, pad_id: int,
) -> PreferenceTrainer:  # fmt: skip
    """Trains the model on the micro-batches of rows, in their order; what is computed is in `objective.steps`."""
    places = {number: place for place, number in enumerate(pairs)}
    every = EncodedPairs([each.rows[0] for each in pairs.values()], [each.ids[0] for each in pairs.values()])
    args = TrainingArguments(**arguments)
    size = args.per_device_train_batch_size
    order = [[places[number] for number in batch] for batch in batches]
    plan = SameOrder(every.lengths, size * args.gradient_accumulation_steps, size, args.seed, order)
    policy = sharing_prefixes(model).eval()
    drawn = EncodedPairs([every.rows[i] for batch in order for i in batch], [every.ids[i] for batch in order for i in batch])
    slots = [[Slot(start + i, 1.0) for i in range(size)] for start in range(0, len(drawn.rows), size)]
    rows = score_shard(policy, drawn, slots, policy_name=POLICY, pad_id=pad_id, head_chunk=4096)
    # Pairs that no step draws need no reference.
    store = dict.fromkeys((name for names in every.ids for name in names), 0.0) | {row["completion"]: row["sum"] for row in rows}
    trainer = PreferenceTrainer(
        policy, args, every.with_reference(store, POLICY).pairs, plan, objective, pad_id=pad_id, tolerance=1e-5
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer
