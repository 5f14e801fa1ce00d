"""Rows in and out of generate, rank, select, score and train, in SELM's second iteration: each computed again from what went in.

The iteration is the second of two, so its prompts are the second part of the data and its policy is that of `iter0`.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
import torch

from handbook_ext.core.artifacts import file_records, hash_of_files
from handbook_ext.data.tiny_world import true_reward
from tests.loop.plain import Json, PlainPolicy, Text, id_of, logged_steps, manifest, question, request_seed, rows, side
from tests.workspace import SELM, Workspace

PART, SAMPLES, LONGEST_PROMPT, NEW_TOKENS, TEMPERATURE = 24, 3, 18, 12, 0.7
Copy = Callable[[Workspace, str], Workspace]


@pytest.fixture(scope="module")
def run(selm: Workspace) -> Path:
    return selm.folder / "runs/mine-micro"


@pytest.fixture(scope="module")
def before(run: Path) -> PlainPolicy:
    """The policy that the second iteration starts from."""
    return PlainPolicy(run / "iter0/policy")


@pytest.fixture(scope="module")
def second_part(run: Path) -> list[Json]:
    return rows(run / "data/rows/train.jsonl")[PART : 2 * PART]


@pytest.fixture(scope="module")
def short(second_part: list[Json], before: PlainPolicy) -> list[Json]:
    """The rows of the second part whose prompt is within the limit."""
    found = [row for row in second_part if len(before.prompt_ids(question(row))) <= LONGEST_PROMPT]
    assert 0 < len(found) < len(second_part)
    return found


def test_generate_asks_each_short_prompt_of_the_second_part_three_times_with_seeds_of_their_own(
    run: Path, second_part: list[Json], short: list[Json]
) -> None:
    made = rows(run / "iter1/completions.jsonl")
    asked = [(row["prompt_id"], number) for row in short for number in range(SAMPLES)]
    assert [(row["prompt_id"], row["sample"]) for row in made] == asked
    assert [row["seed"] for row in made] == [request_seed(1, "iter1", *each) for each in asked]
    prompts = {row["prompt_id"]: row["prompt"] for row in second_part}
    assert all(row["prompt"] == prompts[row["prompt_id"]] for row in made)
    assert [row["completion_id"] for row in made] == [id_of(row, row["text"]) for row in made]
    counts, left_out = manifest(run / "iter1/completions.jsonl")["counts"], len(second_part) - len(short)
    assert counts == {"in": PART * SAMPLES, "out": len(asked), "dropped": {"prompt too long": left_out * SAMPLES}}


def test_generate_draws_from_the_policy_of_the_iteration_before_at_the_recipes_temperature(
    run: Path, before: PlainPolicy
) -> None:
    for row in rows(run / "iter1/completions.jsonl")[:: 3 * SAMPLES - 1]:
        drawn = before.sample(question(row), seed=row["seed"], temperature=TEMPERATURE, top_p=0.9, tokens=NEW_TOKENS)
        assert (row["text"], row["completion_tokens"], row["finish_reason"]) == drawn
        assert row["prompt_tokens"] == len(before.prompt_ids(question(row)))


def test_rank_orders_samples_then_offline_answers_by_the_true_reward(run: Path, short: list[Json]) -> None:
    samples: dict[str, list[Json]] = {row["prompt_id"]: [] for row in short}
    for row in rows(run / "iter1/completions.jsonl"):
        samples[row["prompt_id"]].append(row)
    ranked = rows(run / "iter1/rankings.jsonl")
    assert [row["prompt_id"] for row in ranked] == [row["prompt_id"] for row in short]
    for row, offline in zip(ranked, short, strict=True):
        own = samples[row["prompt_id"]]
        texts = [*(each["text"] for each in own), side(offline, "chosen"), side(offline, "rejected")]
        ids = [*(each["completion_id"] for each in own), offline["chosen_id"], offline["rejected_id"]]
        rewards = [true_reward(question(offline), text) for text in texts]
        found = row["candidates"]
        assert row["prompt"] == offline["prompt"]
        assert [each["text"] for each in found] == texts
        assert [each["completion_id"] for each in found] == ids
        assert [(each["origin"], each["sample"]) for each in found] == [
            *(("on_policy", number) for number in range(SAMPLES)), ("offline", None), ("offline", None)
        ]  # fmt: skip
        assert [each["score"] for each in found] == pytest.approx(rewards)
        assert [each["rank"] for each in found] == [1 + sum(other > own for other in rewards) for own in rewards]
        assert row["ties"] == sum(rewards.count(each) > 1 for each in rewards)
    assert manifest(run / "iter1/rankings.jsonl")["counts"] == {"in": len(short), "out": len(short)}
    assert manifest(run / "iter1/rankings.jsonl")["ties"] == sum(row["ties"] for row in ranked)


def test_select_makes_a_pair_of_best_and_worst_and_explores_the_first_sample(run: Path, short: list[Json]) -> None:
    expected, marked = [], []
    for row, offline in zip(rows(run / "iter1/rankings.jsonl"), short, strict=True):
        scores = [each["score"] for each in row["candidates"]]
        best, worst = (row["candidates"][scores.index(extreme(scores))] for extreme in (max, min))
        explored = row["candidates"][0]
        expected.append([(row["prompt_id"], each["text"], each["completion_id"]) for each in (best, worst, explored)])
        # The flipped label stands only where the ranker repeats it.
        marked.append(offline["swapped"] and [best, worst] == row["candidates"][-2:])
    pairs = rows(run / "iter1/pairs.jsonl")
    sides = ("chosen", "rejected", "explore")
    assert [[(row["prompt_id"], side(row, name), row[f"{name}_id"]) for name in sides] for row in pairs] == expected
    assert [row["swapped"] for row in pairs] == marked
    assert len({(chosen, rejected) for (_, chosen, _), (_, rejected, _), _ in expected}) == len(pairs)
    about = manifest(run / "iter1/pairs.jsonl")
    assert about["counts"] == {
        "in": PART, "out": len(pairs), "dropped": {"prompt without completions": PART - len(short), "chosen equals rejected": 0}
    }  # fmt: skip
    assert about["origins"] == Counter(f"{row['chosen_origin']} over {row['rejected_origin']}" for row in pairs)


def test_select_takes_the_labels_of_the_first_part_as_they_are_in_the_first_iteration(run: Path) -> None:
    first = rows(run / "data/rows/train.jsonl")[:PART]
    pairs = rows(run / "iter0/pairs.jsonl")
    columns = ("prompt_id", "prompt", "chosen", "rejected", "chosen_id", "rejected_id", "swapped")
    assert [[row[name] for name in columns] for row in pairs] == [[row[name] for name in columns] for row in first]
    assert all(row["explore"] is None for row in pairs)
    assert manifest(run / "iter0/pairs.jsonl")["swapped"] == sum(row["swapped"] for row in first) > 0


def texts_of(run: Path, iteration: str, policy: PlainPolicy) -> dict[str, Text]:
    """The answers of an iteration's pairs by id, those behind a prompt within the limit."""
    found = {}
    for row in rows(run / iteration / "pairs.jsonl"):
        if len(policy.prompt_ids(question(row))) <= LONGEST_PROMPT:
            names = [name for name in ("chosen", "rejected", "explore") if row[name] is not None]
            found |= {row[f"{name}_id"]: (question(row), side(row, name)) for name in names}
    return found


@pytest.mark.parametrize(("iteration", "start"), [("iter0", "sft"), ("iter1", "iter0")])
def test_score_stores_the_log_prob_of_every_answer_of_the_pairs_under_the_policy_that_starts_the_iteration(
    run: Path, iteration: str, start: str
) -> None:
    policy, stored = PlainPolicy(run / start / "policy"), rows(run / iteration / "logprobs")
    texts = texts_of(run, iteration, policy)
    assert {row["completion"] for row in stored} == texts.keys()
    with torch.no_grad():
        sums, tokens = policy.log_probs(texts.values())
    expected = dict(zip(texts, zip(sums.tolist(), tokens.tolist(), strict=True), strict=True))
    for row in stored:
        assert (row["sum"], row["tokens"]) == pytest.approx(expected[row["completion"]], abs=1e-4)
        assert row["mean"] == pytest.approx(row["sum"] / row["tokens"])
        assert row["policy"] == manifest(run / start / "policy")["policy"]
    counts, pairs = manifest(run / iteration / "logprobs")["counts"], rows(run / iteration / "pairs.jsonl")
    long = sum(len(policy.prompt_ids(question(row))) > LONGEST_PROMPT for row in pairs)
    assert counts == {"in": len(pairs), "out": len(pairs) - long, "dropped": {"prompt too long": long} if long else {}}
    assert manifest(run / iteration / "logprobs")["completions"] == len(stored)


@pytest.mark.parametrize("iteration", ["iter0", "iter1"])
def test_train_takes_a_step_per_batch_of_its_pairs_at_the_lowered_rate(run: Path, iteration: str) -> None:
    about = manifest(run / iteration / "policy")
    log = logged_steps(run / iteration)
    steps = math.ceil(about["counts"]["out"] / 8)
    assert (about["steps"], [row["step"] for row in log]) == (steps, list(range(1, steps + 1)))
    # Half of 2e-3 at the peak: the factor of the recipe is 0.5. One step of warm-up, then half a cosine.
    rates = [0.0, *(1e-3 * (1 + math.cos(math.pi * step / (steps - 1))) / 2 for step in range(steps - 1))]
    assert [row["learning_rate"] for row in log] == pytest.approx(rates)
    # The first batch is the first eight of the pairs, shuffled by seed and epoch, under the weights that training starts from.
    start = PlainPolicy(run / {"iter0": "sft", "iter1": "iter0"}[iteration] / "policy")
    pairs = [row for row in rows(run / iteration / "pairs.jsonl") if len(start.prompt_ids(question(row))) <= LONGEST_PROMPT]
    random.Random("1 0").shuffle(pairs)
    for name in ("chosen", "rejected"):
        mean = fmean(start.sums((question(row), side(row, name)) for row in pairs[:8]))
        assert log[0][f"logps/{name}"] == pytest.approx(mean, abs=1e-3)
    assert about["notes"].get("explored", 0) == (about["counts"]["out"] if iteration == "iter1" else 0)


def test_train_refuses_reference_log_probs_that_are_not_those_of_its_policy(selm: Workspace, copy_of: Copy) -> None:
    """The store of a copy is shifted by a tenth of a nat per token and published anew, as another policy's would be."""
    workspace = copy_of(selm, SELM)
    store = workspace.folder / "runs/mine-micro/iter1/logprobs"
    for shard in store.glob("*.jsonl"):
        shifted = [row | {"sum": row["sum"] + 0.1 * row["tokens"]} for row in rows(shard)]
        shard.write_text("".join(json.dumps(row) + "\n" for row in shifted))
    files = file_records(store)
    about = manifest(store) | {"files": files, "sha256": hash_of_files(store, files)}
    (store / "manifest.json").write_text(json.dumps(about))
    (command,) = workspace.commands("mine-micro-iter1")
    status, said = workspace.execute(command)
    assert (status, said.count("error:")) == (2, 1)
    assert "the untrained policy differs from its stored log-probs by 0.1 nats per token, in the worst answer by 0.1" in said
    assert "(score.tolerance is 0.001)" in said


ONE_STEP = "iterations: {iter1: {train: {global_batch_size: 24, warmup_ratio: 0, alpha: 0.5, max_grad_norm: 1e9}}, "


def test_one_step_over_all_pairs_is_the_gradient_step_of_dpo_with_selms_term(selm: Workspace, copy_of: Copy) -> None:
    """Its norm, and Adam's first step against it, worked out on plain forwards of chosen, rejected and explored answers."""
    workspace = copy_of(selm, SELM.replace("iterations: {", ONE_STEP))
    _, score, train = workspace.run("mine-micro-iter1")
    assert ("score_completions" in score, "train_policy" in train) == (True, True)
    run, beta, alpha = workspace.folder / "runs/mine-micro", 0.2, 0.5
    policy, after = PlainPolicy(run / "iter0/policy"), PlainPolicy(run / "iter1/policy")
    pairs = rows(run / "iter1/pairs.jsonl")
    sums = {}
    for name in ("chosen", "rejected", "explore"):
        sums[name] = policy.log_probs([(question(row), side(row, name)) for row in pairs])[0]
    ratios = {name: values - values.detach() for name, values in sums.items()}
    margin = ratios["chosen"] - ratios["rejected"]
    loss = (-torch.nn.functional.logsigmoid(beta * margin) + alpha * beta * ratios["explore"]).mean()
    loss.backward()
    gradients = {name: weight.grad for name, weight in policy.model.named_parameters() if weight.grad is not None}
    log = logged_steps(run / "iter1")[0]
    assert log["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    norm = math.sqrt(sum(float((each.double() ** 2).sum()) for each in gradients.values()))
    assert log["grad_norm"] == pytest.approx(norm, rel=1e-3)
    for name, values in sums.items():
        assert log[f"logps/{name}"] == pytest.approx(float(values.detach().mean()), abs=1e-3)
    trained, agree, total = dict(after.model.named_parameters()), 0, 0
    for name, weight in policy.model.named_parameters():
        clear = gradients[name].abs() > 1e-4 * gradients[name].abs().max()
        step = (trained[name] - weight).detach()[clear]
        agree += int(torch.isclose(step, -1e-3 * gradients[name][clear].sign(), atol=2e-5).sum())
        total += int(clear.sum())
    assert agree / total > 0.99


def test_micro_batches_by_tokens_are_those_of_scoring_and_change_no_step(selm: Workspace, copy_of: Copy) -> None:
    """The first step's implicit rewards are 0 to the bit, its loss is that of the run with a number of pairs."""
    before = logged_steps(selm.folder / "runs/mine-micro/iter1")
    workspace = copy_of(selm, SELM.replace("iterations: {", "iterations: {iter1: {train: {micro_batch_tokens: 100}}, "))
    workspace.run("mine-micro-iter1")
    iteration = workspace.folder / "runs/mine-micro/iter1"
    log = logged_steps(iteration)
    assert {log[0][f"rewards/{part}"] for part in ("chosen", "rejected", "explore")} == {0.0}
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in before], abs=1e-4)
    assert log[0]["grad_norm"] == pytest.approx(before[0]["grad_norm"], rel=1e-3)
    assert manifest(iteration / "policy")["micro_batches"] not in (1, 8)
