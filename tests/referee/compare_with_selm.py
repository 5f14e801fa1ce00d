"""The official code of SELM as a referee: the same rows, ranks and weights through their code and ours, and what differs.

    python -m tests.referee --selm CLONE --trl TRL_0_8_6_FOLDER --pairs train.jsonl

Prints one table and ends with status 0 where the comparison under the legacy settings holds, else 1; README.md beside this
file says where the two folders come from, what is compared, and what is patched.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import PreferencePair
from handbook_ext.policies.encoding import EncodedPairs
from handbook_ext.policies.templates import ZEPHYR_TEMPLATE
from tests.referee import differences, official, ours
from tests.referee.expected import Layout, expected_ids, question, rendered
from tests.referee.material import LLAMA3_TEMPLATE, TOKENIZERS, RawPair, make_model, make_tokenizer, read_rows, texts_of
from tests.referee.records import PARTS, Ids
from tests.referee.report import Report

BATCH, ACCUMULATION = 2, 2
BETA, ALPHA = 0.1, 0.1  # Larger than the official ones, so that the exploration term is no rounding error of the loss.
LOSS_LIMIT, LOG_PROB_LIMIT, NORM_LIMIT, WEIGHT_LIMIT = 1e-4, 1e-4, 1e-3, 1e-3


@dataclass
class Comparison:
    """What the parts of a comparison share, and the report that they fill."""

    args: argparse.Namespace
    rows: list[RawPair]
    code: official.Official
    tokenizer: PreTrainedTokenizerBase  # With the official template.
    own_tokenizer: PreTrainedTokenizerBase  # The same with ours.
    report: Report = field(default_factory=Report)

    @property
    def limits(self) -> dict[str, int]:
        """Returns the lengths, in tokens."""
        return {"max_length": self.args.max_length, "max_prompt_length": self.args.max_prompt_length}


def main(argv: Sequence[str]) -> int:
    """Returns the exit status, after the table is printed."""
    args = _arguments(argv)
    rows = read_rows(args.pairs, args.rows)
    code = official.load_official(args.selm, args.trl)
    datasets.disable_progress_bars()
    theirs, own = {"zephyr": (code.data.DEFAULT_CHAT_TEMPLATE, ZEPHYR_TEMPLATE), "llama3": (LLAMA3_TEMPLATE,) * 2}[args.template]
    tokenizer = make_tokenizer(args.tokenizer, texts_of(rows), theirs)
    own_tokenizer = copy.deepcopy(tokenizer)
    own_tokenizer.chat_template = own
    compared = Comparison(args, rows, code, tokenizer, own_tokenizer)
    compare(compared)
    print(compared.report.text())
    return int(not compared.report.holds)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the settings of the command line."""
    patches = f"Patched in their code as it runs: {'; '.join(official.PATCHES)}."
    parser = argparse.ArgumentParser(
        prog="python -m tests.referee", description="Compare with the official code of SELM.", epilog=patches
    )
    parser.add_argument("--selm", type=Path, required=True, help="a clone of shenao-zhang/SELM")
    parser.add_argument("--trl", type=Path, required=True, help="the folder that holds the package trl 0.8.6")
    parser.add_argument("--pairs", type=Path, required=True, help="a .jsonl file in the form of ultrafeedback_binarized")
    parser.add_argument("--rows", type=int, default=200, help="of the file, from its beginning")
    parser.add_argument("--steps", type=int, default=20, help=f"of the optimizer, {BATCH * ACCUMULATION} pairs each")
    parser.add_argument("--tokenizer", choices=tuple(TOKENIZERS), default="sentencepiece")
    parser.add_argument("--template", choices=("zephyr", "llama3"), default="zephyr", help="each side's own of Zephyr, or one")
    parser.add_argument("--max-length", type=int, default=384, help="tokens of prompt and completion")
    parser.add_argument("--max-prompt-length", type=int, default=64, help="tokens")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the order of rows")
    return parser.parse_args(argv)


def compare(compared: Comparison) -> None:
    """Fills the report: pairs, token ids and training under the legacy settings, and what differs under our defaults."""
    updated, asked = official.updated_pairs(compared.code, compared.tokenizer, compared.rows)
    pairs = _compare_pairs(compared, updated, asked)
    model = make_model(len(compared.tokenizer), compared.args.seed)
    trained, recorded = copy.deepcopy(model), official.Recorded()
    with tempfile.TemporaryDirectory() as folder:
        arguments = _training(compared.args, folder)
        trainer = official.make_trainer(
            compared.code, trained, copy.deepcopy(model), compared.tokenizer,
            official.templated(compared.code, compared.tokenizer, updated),
            arguments | compared.limits | {"beta": BETA, "alpha": ALPHA}, recorded,
        )  # fmt: skip
        theirs = dict(enumerate(official.token_ids(trainer)))
        legacy = ours.encoded(compared.own_tokenizer, pairs, compared.limits, ours.LEGACY)
        _compare_ids(compared, updated, theirs, {number: ours.token_ids(each) for number, each in legacy.items()})
        _compare_training(compared, trainer, recorded, legacy, (trained, copy.deepcopy(model)), arguments)
    _explain(compared, pairs, theirs, {}, "differences under our default settings")
    _explain(
        compared, pairs, theirs, {"truncation": "as_needed"}, "differences with truncation as_needed, as recipes/zephyr has it"
    )


def _training(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Returns the training arguments of both sides: the official recipe's optimizer and schedule, in fp32."""
    return {
        "output_dir": folder, "max_steps": args.steps, "per_device_train_batch_size": BATCH, "seed": args.seed,
        "gradient_accumulation_steps": ACCUMULATION, "learning_rate": args.learning_rate, "optim": "adamw_torch",
        "lr_scheduler_type": "cosine", "warmup_steps": max(1, args.steps // 10), "use_cpu": True, "report_to": [],
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip


def _compare_pairs(compared: Comparison, updated: datasets.Dataset, asked: list[str]) -> dict[int, PreferencePair]:
    """Reports whether both rules make the same pairs of the same ranks; returns those that a run of ours would train on."""
    report, rows = compared.report, compared.rows
    offline, _ = ours.offline_pairs(rows)
    rankings = ours.ranked(offline, rows)
    found = ours.chosen_texts(rankings)
    report.say("rows compared", f"{len(rows)}, {compared.args.tokenizer}, {compared.args.template}, {compared.limits}")
    prompts = [rendered(compared.own_tokenizer, pair.prompt, ask=True) for pair in offline]
    numbers = [int(pair.prompt_id) for pair in offline]
    report.equal(
        "equal generation prompts", [n for n, text in zip(numbers, prompts, strict=True) if asked[n] != text], len(prompts)
    )
    theirs = [(row["chosen"][-1]["content"], row["rejected"][-1]["content"], row["reference_response"]) for row in updated]
    report.equal("equal pairs (chosen, rejected, explored)", [n for n in found if found[n] != theirs[n]], len(found))
    explored = [texts[2] for texts in theirs]
    kinds = (sum(one in texts[:2] for one, texts in zip(explored, theirs, strict=True)), sum(row.ties > 0 for row in rankings))
    report.say("  of them", f"explored is chosen or rejected in {kinds[0]}, candidates tie in {kinds[1]}")
    return ours.selected_pairs(offline, rankings)


def _compare_ids(compared: Comparison, updated: datasets.Dataset, theirs: dict[int, Ids], legacy: dict[int, Ids]) -> None:
    """Reports whether the token ids are equal under the legacy settings, and whether they are what expected.py says."""
    report = compared.report
    understood = {}
    for number, row in enumerate(updated):
        answers = (row["chosen"][-1]["content"], row["rejected"][-1]["content"], row["reference_response"])
        understood[number] = expected_ids(compared.tokenizer, row["prompt"], answers, **compared.limits)
    report.equal("their ids as expected.py says", [n for n in theirs if theirs[n] != understood[n]], len(theirs))
    for part in PARTS:
        wrong = [number for number, ids in legacy.items() if part in differences.unequal_parts(ids, theirs[number])]
        report.equal(f"equal ids under the legacy settings: {part}", wrong, len(legacy))


def _compare_training(
    compared: Comparison, trainer: Any, recorded: official.Recorded, legacy: dict[int, EncodedPairs], models: tuple[Any, Any],
    arguments: dict[str, Any],
) -> None:  # fmt: skip
    """Trains both sides on the rows that both have, theirs first, whose batches ours repeats; reports how far they are apart."""
    needed = compared.args.steps * BATCH * ACCUMULATION
    if len(legacy) < needed:
        raise UserError(f"{len(legacy)} pairs are left for {needed} places in {compared.args.steps} steps; give more --rows")
    trainer.train_dataset = trainer.train_dataset.select(sorted(legacy))
    trainer.train()
    objective = ours.Recording(beta=BETA, alpha=ALPHA)
    own_trainer = ours.train(models[1], legacy, recorded.rows, arguments, objective, compared.tokenizer.pad_token_id)
    report, steps = compared.report, (objective.steps, recorded.steps)
    losses = [differences.step_losses(each, ACCUMULATION) for each in steps]
    report.say("optimizer steps", f"{len(losses[1])}, loss {losses[1][0]:.4f} to {losses[1][-1]:.4f}")
    report.at_most(
        "loss of a step, relative difference", differences.largest_difference(*losses, relative=True), LOSS_LIMIT
    )  # fmt: skip
    each = [[loss for step in side for loss in step.losses] for side in steps]
    report.say("loss of a pair, absolute difference", f"{differences.largest_difference(*each, relative=False):.1e}")
    values = [differences.log_probs(side) for side in steps]
    report.at_most("log-prob, relative difference", differences.largest_difference(*values, relative=True), LOG_PROB_LIMIT)
    report.say("log-prob, absolute difference", f"{differences.largest_difference(*values, relative=False):.1e} nats")
    # AdamW and clipping hide the scale of gradients from losses and weights.
    norms = [differences.gradient_norms(each.state.log_history) for each in (own_trainer, trainer)]
    report.at_most("gradient norm, relative difference", differences.largest_difference(*norms, relative=True), NORM_LIMIT)
    with torch.no_grad():
        weights = [torch.cat([weight.flatten() for weight in model.parameters()]) for model in models]
        start = torch.cat([weight.flatten() for weight in trainer.ref_model.parameters()])
    moved = float((weights[0] - start).norm())
    report.at_most("weights after training, over their way", float((weights[0] - weights[1]).norm()) / moved, WEIGHT_LIMIT)


def _explain(
    compared: Comparison, pairs: dict[int, PreferencePair], theirs: dict[int, Ids], settings: dict[str, Any], title: str
) -> None:
    """Reports why token ids differ under settings of ours, and how many rows each reason touches."""
    report, layout = compared.report, Layout.of(compared.tokenizer)
    own = ours.encoded(compared.own_tokenizer, pairs, compared.limits, settings)
    _, unread = ours.offline_pairs(compared.rows, ties="drop")
    counts = Counter({differences.UNREAD.format(reason): count for reason, count in unread.items()})
    for number, ids in theirs.items():
        if number not in pairs:
            counts[differences.DROPPED] += 1
        elif number not in own:
            counts[differences.CUT_EQUAL] += 1
        else:
            whole = [token for token in question(compared.tokenizer, compared.rows[number].prompt)[1] if token != layout.bos]
            mine = ours.token_ids(own[number])
            counts.update(set(differences.reasons(mine, ids, layout, compared.args.max_length, whole)))
    report.counted(title, counts, len(theirs))
    report.faults += [reason for reason in counts if "NOT EXPLAINED" in reason]
