"""SeRA and its baselines: every row of the paper's tables is a recipe, and each method is what the paper says of it."""

from __future__ import annotations

from typing import Any

import pytest

from handbook_ext.core.stage_settings import differences
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.names import paper_row
from handbook_ext.recipes.run import Run
from tests.recipe_folder import ROOT
from tests.recipes.delivered import FILES, course, difference, run_of

MODELS = ("tinyllama", "pythia", "mistral", "tiny")
TABLE_1 = {
    "DPO": "dpo",
    "Iterative DPO": "iterative-dpo",
    "Curry-DPO": "curry-dpo",
    "SeRA-DPO": "sera",
    "best-SeRA-DPO": "best-sera",
}
TABLE_2 = {
    "IPO": "ipo", "Iterative IPO": "iterative-ipo", "SeRA-IPO": "sera-ipo",
    "SLiC": "slic", "Iterative SLiC": "iterative-slic", "SeRA-SLiC": "sera-slic",
}  # fmt: skip
TABLE_9 = {"SimPO": "simpo", "Iterative SimPO": "iterative-simpo", "SeRA-SimPO": "sera-simpo"}
NOISE = {"DPO": "dpo", "Iterative DPO": "iterative-dpo", "cDPO": "cdpo", "rDPO": "rdpo", "IPO": "ipo", "SeRA-DPO": "sera"}
# SeRA's tables: the number, the models that it has, its rows, and the variant under which a recipe is that row.
TABLES: list[tuple[str, tuple[str, ...], dict[str, str], str]] = [
    ("1", MODELS, TABLE_1, ""),
    ("1", ("mistral", "tiny"), {"SPIN": "spin", "ORPO": "orpo"}, ""),
    ("2", ("tinyllama", "pythia", "tiny"), TABLE_2, ""),
    *[("3", ("tinyllama",), {"DPO": "dpo", "Iterative DPO": "iterative-dpo", "OAIF": "oaif", "SeRA-DPO": "sera"}, data)
      for data in ("-hh", "-tldr")],
    *[("3", ("tinyllama",), {"selection only": "sera-selection"}, data) for data in ("-hh", "-tldr")],
    ("6", ("mistral", "tiny"), {"SRLM": "srlm"}, ""),
    ("7", ("tinyllama", "tiny"), NOISE, "-noise20"),
    ("8", ("tinyllama", "tiny"), NOISE, "-noise40"),
    ("9", ("tinyllama", "tiny"), TABLE_9, ""),
]  # fmt: skip
ROWS = [
    pytest.param(model, number, row, method, variant, id=f"{number}-{model}-{row}{variant}")
    for number, models, rows, variant in TABLES
    for model in models
    for row, method in rows.items()
]
DAAS = {"dpo": "sigmoid", "ipo": "ipo", "slic": "hinge", "simpo": "simpo"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


def recipe_of(model: str, method: str) -> str:
    """The recipe of a method; on the tiny world `dpo` is SELM's iterative one."""
    return "tiny-offline-dpo" if (model, method) == ("tiny", "dpo") else f"{model}-{method}"


def updates(run: Run) -> float:
    """The number of pairs that a run trains on in all, over N, where every rule but SeRA's takes one of each prompt."""
    total = 0.0
    for each in run.iterations:
        select = each.settings.select
        share = select.keep + select.bootstrap if select.rule == "sera" else 1.0
        total += share * each.settings.train.num_train_epochs
    return total


@pytest.mark.parametrize(("model", "number", "row", "method", "variant"), ROWS)
def test_every_row_of_the_paper_is_a_goal_and_says_so(model: str, number: str, row: str, method: str, variant: str) -> None:
    name = recipe_of(model, method)
    run = run_of(name + variant)
    assert run_rules(run)
    tables, _, said = paper_row(FILES[name]).removeprefix("SeRA table").removeprefix("s").strip().rpartition(", ")
    assert number in tables.split(", ")
    assert said.removesuffix(" (INF)") == row


@pytest.mark.parametrize("model", MODELS)
def test_methods_are_compared_at_equal_numbers_of_updates(model: str) -> None:
    """The paper's "fair comparison in terms of sample size": K + K~ = N; best-SeRA alone may have more."""
    methods = ["dpo", "iterative-dpo", "curry-dpo", "sera"]
    assert [updates(run_of(recipe_of(model, each))) for each in methods] == [pytest.approx(3)] * 4
    assert updates(run_of(recipe_of(model, "best-sera"))) > 3
    others = {name for name in FILES if name.startswith(f"{model}-")} - {f"{model}-best-sera", "tiny-selm", "tiny-dpo"}
    assert [name for name in sorted(others) if updates(run_of(name)) > 3.001] == []


@pytest.mark.parametrize("model", MODELS)
def test_only_the_reference_moves_in_iterative_dpo(model: str) -> None:
    """No samples, no judge, the original labels; DPO's one policy starts from SFT, the others each from the one before."""
    iterative, offline = run_of(f"{model}-iterative-dpo"), run_of(recipe_of(model, "dpo"))
    assert [each.starts_from for each in iterative.iterations] == [iterative.start, "iter1", "iter2"]
    assert [each.starts_from for each in offline.iterations] == [offline.start]
    for run in (iterative, offline):
        scripts = {rule.script for rule in run_rules(run)}
        assert not scripts & {"generate_completions.py", "rank_completions.py", "score_candidates.py"}


@pytest.mark.parametrize("model", MODELS)
def test_sera_is_algorithm_1(model: str) -> None:
    run = run_of(f"{model}-sera")
    assert course(run, "select.rule") == ["dataset", "sera", "sera"]  # P_1 is all original pairs.
    selects = {rule.folder: rule.settings for rule in run_rules(run) if rule.script == "select_pairs.py"}
    start = run.start
    # Eq. 7: the first margin alone, then 0.7 of the latest and 0.3 of the one before, each by its own reference.
    assert [each["weight"] for each in selects["iter3"].terms] == pytest.approx([0.7, 0.3])
    assert [(each["policy"], each["reference"]) for each in selects["iter2"].terms] == [("iter1", start)]
    assert [(each["policy"], each["reference"]) for each in selects["iter3"].terms] == [("iter2", "iter1"), ("iter1", start)]
    for each in run.iterations[1:]:
        select, generate = each.settings.select, each.settings.generate
        assert (select.keep, select.keep_by, select.bootstrap) == (0.7, "margin", 0.3)
        assert (generate.num_completions, generate.temperature, generate.top_p) == (4, 0.7, 0.95)
        assert not each.needs.rankings  # The policy reviews itself: nobody judges its samples.


@pytest.mark.parametrize("model", ["tinyllama", "pythia", "tiny"])
def test_another_loss_changes_the_loss_alone(model: str) -> None:
    families = {"": recipe_of(model, "dpo"), "iterative-": f"{model}-iterative-dpo", "sera-": f"{model}-sera"}
    for daa, loss_type in DAAS.items():
        for flavour, dpo in families.items():
            name = f"{model}-{flavour}{daa}"
            if daa != "dpo" and name in FILES:
                assert set(course(name, "train.loss_type")) == {loss_type}
                settings = {each.split(".")[-1] for each in difference(run_of(name), run_of(dpo)) if each.startswith("train.")}
                assert settings <= {"loss_type", "beta", "gamma_beta_ratio"}, name
    for name, beta in (("slic", 0.5 if model == "tiny" else 0.2), ("ipo", 1.0)):
        assert course(f"{model}-{name}", "train.beta") == [beta]
    assert set(course(f"{model}-sera-ipo", "train.ipo_log_prob")) == {"mean"}  # As TRL, which beta 1.0 was tuned on.


@pytest.mark.parametrize("method", NOISE.values())
@pytest.mark.parametrize("percent", [20, 40])
def test_noise_swaps_labels_and_changes_nothing_else(method: str, percent: int) -> None:
    noisy, clean = run_of(f"tinyllama-{method}-noise{percent}"), run_of(f"tinyllama-{method}")
    known = {"train.label_smoothing"} if method in ("cdpo", "rdpo") else set()
    assert difference(noisy, clean) == {"data.flip_rate"} | known
    assert noisy.settings.data.flip_rate == percent / 100
    tiny = run_of(f"{recipe_of('tiny', method)}-noise{percent}")
    assert tiny.settings.data.flip_rate == percent / 100
    for run in (noisy, tiny):
        robust = {"cdpo": "sigmoid", "rdpo": "robust"}
        told = percent / 100 if method in robust else 0.0
        assert set(course(run, "train.label_smoothing")) == {told}  # cDPO and rDPO know the true rate.
        assert set(course(run, "train.loss_type")) == {robust.get(method, "ipo" if method == "ipo" else "sigmoid")}


def test_rows_with_noise_on_the_tiny_world_share_data_and_rate() -> None:
    for percent in (20, 40):
        runs = [run_of(f"{recipe_of('tiny', each)}-noise{percent}") for each in [*NOISE.values(), "select-chosen-length"]]
        assert len({run.settings.data for run in runs}) == 1
        assert {rate for run in runs for rate in course(run, "train.rate")} == {1e-4}


@pytest.mark.parametrize(
    ("variant", "dataset", "form"),
    [("hh", "Anthropic/hh-rlhf", "hh_rlhf"), ("tldr", "openai/summarize_from_feedback", "tldr")],
)
def test_table_3_reads_other_preferences_after_the_same_sft(variant: str, dataset: str, form: str) -> None:
    for method in ("dpo", "iterative-dpo", "oaif", "sera-selection", "sera"):
        run = run_of(f"tinyllama-{method}-{variant}")
        assert (run.settings.data.dataset, run.settings.data.form) == (dataset, form)
        assert run.settings.data.sft_dataset == "HuggingFaceH4/ultrachat_200k"
        assert {each.partition(".")[0] for each in difference(run, run_of(f"tinyllama-{method}"))} == {"data"}


@pytest.mark.parametrize("model", MODELS)
def test_selectors_keep_equal_shares_by_different_measures(model: str) -> None:
    margin = run_of(f"{model}-select-margin")
    assert [set(course(margin, f"select.{each}")) for each in ("keep", "bootstrap", "gamma")] == [{0.7}, {0.0}, {0.0}]
    measures = {"margin": margin} | {each: run_of(f"{model}-select-{each}") for each in ("score-gap", "log-prob", "random")}
    for name, run in measures.items():
        assert set(course(run, "select.keep_by")) == {name.replace("-", "_")}
        assert len({(each.settings.select.keep, each.settings.select.bootstrap) for each in run.iterations}) == 1
        assert {each for each in difference(run, margin) if each.startswith("select.")} <= {"select.keep_by"}


@pytest.mark.parametrize(
    ("name", "judge", "model", "samples"),
    [
        ("tinyllama-oaif-hh", "reward_model", "weqweasdas/RM-Mistral-7B", 2),  # OAIF: two samples, an annotator from outside.
        ("tinyllama-oaif-tldr", "reward_model", "weqweasdas/RM-Mistral-7B", 2),
        ("tiny-oaif", "reward_model", None, 2),
        ("mistral-srlm", "self", "weqweasdas/RM-Mistral-7B", 4),  # SRLM: the policy itself; the model judges the report alone.
        ("tiny-srlm", "self", None, 4),
    ],
)
def test_on_policy_baselines_judge_their_own_samples_alone(name: str, judge: str, model: str | None, samples: int) -> None:
    run = run_of(name)
    assert [each.needs.rankings for each in run.iterations] == [True] * 3
    for setting, value in {"rank.candidates": "samples", "rank.ranker": judge, "rank.model": model,
                           "select.rule": "best_and_worst", "generate.num_completions": samples}.items():  # fmt: skip
        assert course(run, setting) == [value] * 3
    assert run.trains_reward_model == (name == "tiny-oaif")


def test_own_pairs_under_other_labels_differ_in_nothing_else() -> None:
    """What right labels are worth, and a coin's, is asked of the same rule: selection by margins, K and K~, samples."""
    for name, labels in (("truth", "ranker"), ("coin", "coin")):
        run = run_of(f"tiny-sera-{name}")
        assert course(run, "select.bootstrap_labels") == [labels] * 3
        for each, usual in zip(run.iterations, run_of("tiny-sera").iterations, strict=True):
            changed = differences(usual.settings.model_dump(), each.settings.model_dump())
            judged = {"rank.candidates"} if name == "truth" else set()
            assert {setting for setting, _, _ in changed} == {"select.bootstrap_labels", "report.title"} | judged
        assert [each.needs.rankings for each in run.iterations] == [False, *[name == "truth"] * 2]
    truth = run_of("tiny-sera-truth").settings.rank
    assert (truth.ranker, truth.candidates) == ("oracle", "samples")


@pytest.mark.parametrize("model", ["mistral", "tiny"])
def test_spin_takes_demonstrations_and_orpo_no_reference(model: str) -> None:
    spin = run_of(f"{model}-spin")
    assert course(spin, "select.rule") == ["gold_over_sample"] * 3
    assert (spin.settings.data.prompts, set(course(spin, "generate.num_completions"))) == ("demonstrations", {1})
    orpo = run_of(f"{model}-orpo")
    assert course(orpo, "train.loss_type") == ["orpo"]
    assert not [rule for rule in run_rules(orpo) if rule.script == "score_completions.py"]


@pytest.mark.parametrize("model", MODELS)
def test_curry_dpo_goes_from_easy_to_hard(model: str) -> None:
    run = run_of(f"{model}-curry-dpo")
    assert course(run, "select.rule") == ["curriculum"] * 3
    assert course(run, "select.rejected_rank") == [1, 2, 3]  # (R1, R4), (R1, R3), (R1, R2).
    assert all(each.needs.rated_answers for each in run.iterations)


# SeRA's table 4 and the summary of its conference version; rates of Pythia are inferred from a merged cell.
@pytest.mark.parametrize(
    ("setting", "tinyllama", "pythia", "mistral"),
    [
        ("train.rate", 3e-6, 3e-6, 5e-6),
        ("train.beta", 0.2, 0.2, 0.01),
        ("train.per_device_train_batch_size", 8, 4, 4),
        ("train.global_batch_size", 4 * 8 * 2, 4 * 4 * 4, 4 * 4 * 4),  # 4 GPUs x per device x accumulated.
        ("train.num_train_epochs", 1, 1, 1),
        ("evaluate.temperatures", [1.0], [1.0], [1.0]),
        ("evaluate.max_new_tokens", 512, 512, 512),
    ],
)
def test_the_settings_that_the_paper_prints(setting: str, tinyllama: Any, pythia: Any, mistral: Any) -> None:
    for model, expected in (("tinyllama", tinyllama), ("pythia", pythia), ("mistral", mistral)):
        for method in ("iterative-dpo", "sera"):
            assert course(f"{model}-{method}", setting) == [expected] * 3


def test_full_weights_after_sft_but_adapters_from_a_released_checkpoint_for_mistral() -> None:
    mistral = run_of("mistral-sera").settings
    assert mistral.model.lora is not None
    assert (mistral.model.lora.r, mistral.sft) == (8, None)
    for model in ("tinyllama", "pythia"):
        settings = run_of(f"{model}-sera").settings
        assert (settings.model.lora, settings.data.sft_dataset) == (None, "HuggingFaceH4/ultrachat_200k")
        assert settings.sft is not None
