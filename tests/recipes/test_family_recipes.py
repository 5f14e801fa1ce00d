"""The recipes of the SeRA family and of SELM's ablations: they resolve, cite their sources and say what the papers say."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.recipes.writing import Run, recipe_files, resolve, stage_settings, unsupported_settings
from tests.recipe_folder import ROOT

FAMILY = ("tinyllama", "pythia", "mistral", "tiny", "sweeps")
FILES = {name: path for name, path in recipe_files(ROOT / "recipes").items() if path.parent.name in FAMILY}
PAPER_SCALE = sorted(path for model in FAMILY[:3] for path in (ROOT / "recipes" / model).glob("*.yaml"))

TABLE_1 = {"dpo", "iterative-dpo", "curry-dpo", "sera", "best-sera"}
TABLE_2 = {f"{flavour}{loss}" for loss in ("ipo", "slic") for flavour in ("", "iterative-", "sera-")}
TABLE_9 = {"simpo", "iterative-simpo", "sera-simpo"}
TABLES_7_8 = {f"noise{percent}-{row}" for percent in (20, 40) for row in ("dpo", "iterative-dpo", "cdpo", "rdpo", "ipo", "sera")}
TABLE_3 = {f"{data}-{row}" for data in ("hh", "tldr") for row in ("dpo", "iterative-dpo", "oaif", "sera-selection", "sera")}
FIGURE_2 = {f"select-{measure}" for measure in ("margin", "score-gap", "log-prob", "random")}
OURS_TINY = {"selm", "offline-dpo", "oaif", "sera-selection", "spin", "orpo", "srlm", "select-chosen-length"}
SELM_3 = {f"alpha-{alpha}" for alpha in ("0", "0.002", "0.02", "0.1", "0.5")}
SELM_6 = {f"iterations-{count}" for count in (3, 4, 5, 6)} | {f"batch-{size}" for size in (16, 32, 64)}
SELM_6 |= {"rate-constant", "rate-linear", "rate-last", "rule-best-and-worst", "rule-against-chosen"}
SELM_6 |= {"stepwise-dpo", "offline-dpo"}
SERA_5 = {f"keep-{keep}" for keep in ("1.0", "0.9", "0.7", "0.5", "0.3", "0.0")}
SERA_5 |= {f"selection-{keep}" for keep in ("0.9", "0.7", "0.5", "0.3")}
SERA_5 |= {f"bootstrap-{own}" for own in ("0.0", "0.3", "0.5", "0.7", "1.0")}
SERA_6 = {f"gamma-{gamma}" for gamma in ("0.0", "0.1", "0.3", "0.5", "0.7", "0.9")} | {"reference-start"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are found from the repository's root."""
    monkeypatch.chdir(ROOT)


@cache
def run_of(name: str) -> Run:
    """Returns a resolved recipe; each is resolved once."""
    return resolve(name)


def value(settings: Any, dotted: str) -> Any:
    """Returns the setting that a dotted name leads to."""
    for name in dotted.split("."):
        settings = getattr(settings, name)
    return settings


def course(name: str, dotted: str) -> list[Any]:
    """Returns a setting in every iteration of a recipe, in their order."""
    return [value(each.settings, dotted) for each in run_of(name).iterations]


@pytest.mark.parametrize(
    ("model", "methods"),
    [
        ("tinyllama", TABLE_1 | TABLE_2 | TABLE_9 | TABLES_7_8 | TABLE_3 | FIGURE_2),
        ("pythia", TABLE_1 | TABLE_2 | FIGURE_2),
        ("mistral", TABLE_1 | FIGURE_2 | {"spin", "orpo", "srlm"}),
        ("tiny", TABLE_1 | TABLE_2 | TABLE_9 | TABLES_7_8 | FIGURE_2 | OURS_TINY),
        ("sweeps", SELM_3 | SELM_6 | SERA_5 | SERA_6),
    ],
)
def test_every_row_of_the_papers_has_its_recipe(model: str, methods: set[str]) -> None:
    assert methods <= {path.stem for path in FILES.values() if path.parent.name == model}


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_recipe_resolves(name: str) -> None:
    run = run_of(name)
    assert stage_settings(run)
    assert course(name, "train.alpha") == [0.0] * len(run.iterations) or "selm" in name or "alpha" in name


@pytest.mark.parametrize("path", PAPER_SCALE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_value_at_paper_scale_has_its_source(path: Path) -> None:
    sources = r"# .*(SeRA|SPIN|SimPO|assumed|deviation|our sweep|null removes)"
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        states = re.match(r"\s*[a-z_0-9]+: ?[^\s#]", line) and not re.match(r"base:|\s*iter\d: \{\}", line)
        assert not states or re.search(sources, line), f"{path}:{number}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_recipe_opens_with_what_it_is(name: str) -> None:
    assert FILES[name].read_text().startswith("# ")


@pytest.mark.parametrize(
    ("setting", "tinyllama", "pythia", "mistral"),
    [
        ("model.name_or_path", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "EleutherAI/pythia-2.8b",
         "alignment-handbook/zephyr-7b-sft-full"),
        ("model.chat_template", "zephyr", "zephyr", "zephyr"),
        ("data.dataset", *["HuggingFaceH4/ultrafeedback_binarized"] * 3),
        ("data.portions", 1, 1, 1),
        ("data.sft_dataset", "HuggingFaceH4/ultrachat_200k", "HuggingFaceH4/ultrachat_200k", None),
        ("data.sft", "train_sft", "train_sft", None),
        ("train.learning_rate", 3e-6, 3e-6, 5e-6),
        ("train.beta", 0.2, 0.2, 0.01),
        ("train.global_batch_size", 64, 64, 64),
        ("train.per_device_train_batch_size", 8, 4, 4),
        ("train.num_train_epochs", 1, 1, 1),
        ("train.lr_scheduler_type", "cosine", "cosine", "cosine"),
        ("train.warmup_ratio", 0.1, 0.1, 0.1),
        ("train.max_length", 1024, 1024, 1024),
        ("train.max_prompt_length", 512, 512, 512),
        ("select.keep", 0.7, 0.7, 0.7),
        ("select.bootstrap", 0.3, 0.3, 0.3),
        ("select.gamma", 0.3, 0.3, 0.3),
        ("select.margin_reference", "previous", "previous", "previous"),
        ("generate.num_completions", 4, 4, 4),
        ("generate.temperature", 0.7, 0.7, 0.7),
        ("generate.top_p", 0.95, 0.95, 0.95),
        ("generate.engine", "transformers", "transformers", "transformers"),
        ("evaluate.temperatures", [1.0], [1.0], [1.0]),
        ("evaluate.max_new_tokens", 512, 512, 512),
    ],
)  # fmt: skip
def test_the_settings_of_sera_per_model(setting: str, tinyllama: Any, pythia: Any, mistral: Any) -> None:
    for model, expected in (("tinyllama", tinyllama), ("pythia", pythia), ("mistral", mistral)):
        assert course(f"{model}-sera", setting) == [expected] * 3


def test_only_mistral_has_adapters_and_starts_from_a_tuned_checkpoint() -> None:
    lora = run_of("mistral-sera").settings.model.lora
    assert lora is not None
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, len(lora.target_modules or [])) == (8, 128, 0.05, 7)
    assert run_of("mistral-sera").settings.sft is None
    for model in ("tinyllama", "pythia"):
        settings = run_of(f"{model}-sera").settings
        assert settings.model.lora is None
        assert settings.sft is not None
        assert (settings.sft.learning_rate, settings.sft.global_batch_size, settings.sft.max_length) == (2e-5, 128, 2048)


@pytest.mark.parametrize("model", FAMILY[:4])
def test_the_methods_differ_in_reference_and_selection_alone(model: str) -> None:
    offline = "tiny-offline-dpo" if model == "tiny" else f"{model}-dpo"
    assert course(offline, "select.rule") == ["dataset"]
    assert course(offline, "train.num_train_epochs") == [3]
    assert course(f"{model}-iterative-dpo", "select.rule") == ["dataset"] * 3
    assert course(f"{model}-curry-dpo", "select.rule") == ["curriculum"] * 3
    assert course(f"{model}-curry-dpo", "select.rejected_rank") == [1, 2, 3]
    for name in (f"{model}-sera", f"{model}-best-sera"):
        assert course(name, "select.rule") == ["dataset", "sera", "sera"]
        assert course(name, "select.keep_by") == ["margin"] * 3
    assert course(f"{model}-best-sera", "select.bootstrap") == [1.0] * 3
    assert course(f"{model}-iterative-dpo", "train.num_train_epochs") == [1] * 3
    assert {run_of(f"{model}-{name}").settings.train.beta for name in TABLE_1} == {0.01 if model == "mistral" else 0.2}


@pytest.mark.parametrize("model", ["tinyllama", "pythia", "tiny"])
@pytest.mark.parametrize(
    ("loss", "loss_type", "beta"), [("ipo", "ipo", 1.0), ("slic", "hinge", 0.2), ("simpo", "simpo", 2.0)]
)  # fmt: skip
def test_other_losses_have_their_own_beta(model: str, loss: str, loss_type: str, beta: float) -> None:
    if (model, loss) == ("pythia", "simpo"):
        return
    for flavour, rules in (("", ["dataset"]), ("iterative-", ["dataset"] * 3), ("sera-", ["dataset", "sera", "sera"])):
        name = f"{model}-{flavour}{loss}"
        assert course(name, "select.rule") == rules
        assert set(course(name, "train.loss_type")) == {loss_type}
        assert set(course(name, "train.beta")) == {beta}
        assert set(course(name, "train.gamma_beta_ratio")) == {0.5}
        assert set(course(name, "train.ipo_log_prob")) == {"mean"}


@pytest.mark.parametrize("model", ["tinyllama", "tiny"])
@pytest.mark.parametrize("percent", [20, 40])
def test_noise_swaps_the_same_share_in_every_row_and_the_robust_losses_know_it(model: str, percent: int) -> None:
    rate = percent / 100
    for row in ("dpo", "iterative-dpo", "cdpo", "rdpo", "ipo", "sera"):
        name = f"{model}-noise{percent}-{row}"
        assert run_of(name).settings.data.flip_rate == rate
        assert set(course(name, "train.label_smoothing")) == {rate if row in ("cdpo", "rdpo") else 0.0}
        expected = {"rdpo": "robust", "ipo": "ipo"}.get(row, "sigmoid")
        assert set(course(name, "train.loss_type")) == {expected}
    assert course(f"{model}-noise{percent}-cdpo", "train.num_train_epochs") == [3]


@pytest.mark.parametrize("model", ["tinyllama", "tiny"])
def test_selectors_keep_equal_shares_by_different_measures(model: str) -> None:
    names = sorted(name for name in FILES if name.startswith(f"{model}-select-"))
    assert len(names) >= 4
    assert len({run_of(name).settings.select.keep_by for name in names}) == len(names)
    for name in names:
        shares = [course(name, f"select.{setting}") for setting in ("rule", "keep", "bootstrap", "gamma")]
        assert shares == [["dataset", "sera", "sera"], [0.7] * 3, [0.0] * 3, [0.0] * 3]


@pytest.mark.parametrize(
    ("name", "ranker", "model", "completions"),
    [
        ("tinyllama-hh-oaif", "reward_model", "weqweasdas/RM-Mistral-7B", 2),
        ("tinyllama-tldr-oaif", "reward_model", "weqweasdas/RM-Mistral-7B", 2),
        ("tiny-oaif", "reward_model", None, 2),
        ("mistral-srlm", "self", "weqweasdas/RM-Mistral-7B", 4),
        ("tiny-srlm", "self", None, 4),
    ],
)
def test_on_policy_baselines_judge_their_own_samples_alone(name: str, ranker: str, model: str | None, completions: int) -> None:
    assert course(name, "rank.candidates") == ["samples"] * 3
    assert course(name, "select.rule") == ["best_and_worst"] * 3
    assert course(name, "select.explore") == [False] * 3
    assert course(name, "generate.num_completions") == [completions] * 3
    assert {(each.settings.rank.ranker, each.settings.rank.model) for each in run_of(name).iterations} == {(ranker, model)}
    assert run_of(name).trains_reward_model == (ranker in {"reward_model", "self"} and model is None and name != "tiny-srlm")


def test_spin_takes_demonstrations_and_orpo_one_pass_without_reference() -> None:
    for model in ("mistral", "tiny"):
        assert course(f"{model}-spin", "select.rule") == ["gold_over_sample"] * 3
        assert run_of(f"{model}-spin").settings.data.prompts == "demonstrations"
        assert course(f"{model}-spin", "generate.num_completions") == [1] * 3
        assert course(f"{model}-orpo", "train.loss_type") == ["orpo"]
        assert course(f"{model}-orpo", "train.beta") == [0.1]
    assert run_of("tiny-srlm").settings.data.judge_rows == 4000
    assert run_of("tiny-srlm").settings.rank.rubric == "tiny"
    assert run_of("tiny-curry-dpo").settings.data.answers == 4


@pytest.mark.parametrize(
    ("data", "dataset", "form", "test"),
    [
        ("hh", "Anthropic/hh-rlhf", "hh_rlhf", "test"),
        ("tldr", "openai/summarize_from_feedback", "tldr", "validation"),
    ],
)
def test_table_3_reads_other_data_in_every_row(data: str, dataset: str, form: str, test: str) -> None:
    for row in ("dpo", "iterative-dpo", "oaif", "sera-selection", "sera"):
        read = run_of(f"tinyllama-{data}-{row}").settings.data
        assert (read.dataset, read.form, read.train, read.test, read.test_rows) == (dataset, form, "train", test, 2000)
        assert read.sft_dataset == "HuggingFaceH4/ultrachat_200k"
    assert course(f"tinyllama-{data}-sera-selection", "select.bootstrap") == [0.0] * 3


@pytest.mark.parametrize("name", sorted(SELM_3 | SERA_5 | SERA_6))
def test_a_point_of_a_sweep_is_what_its_name_says(name: str) -> None:
    swept, _, told = name.rpartition("-")
    select = run_of(f"sweeps-{name}").iterations[-1].settings.select
    match swept:
        case "alpha":
            assert course(f"sweeps-{name}", "train.alpha") == [0.0, *[float(told)] * 3]
        case "keep":
            assert select.keep == float(told)
            assert select.bootstrap == pytest.approx(1 - select.keep)
        case "selection":
            assert (select.keep, select.bootstrap) == (float(told), 0.0)
        case "bootstrap":
            assert (select.keep, select.bootstrap) == (0.7, float(told))
        case "gamma":
            assert (select.gamma, select.keep, select.bootstrap) == (float(told), 0.7, 0.3)
        case _:
            assert select.margin_reference == "start"


def test_the_grid_of_selm_figure_6_changes_iterative_dpo_in_one_setting() -> None:
    for count in (3, 4, 5, 6):
        run = run_of(f"sweeps-iterations-{count}")
        assert (len(run.iterations), run.settings.data.portions, run.iterations[0].name) == (count, count, "iter0")
        assert course(run.name, "train.learning_rate") == [2e-4] * (count - 1) + [1e-4]
    for size in (16, 32, 64):
        assert course(f"sweeps-batch-{size}", "train.global_batch_size") == [size] * 4
    assert course("sweeps-rate-constant", "train.learning_rate") == [2e-4] * 4
    assert course("sweeps-rate-linear", "train.learning_rate") == [2e-4, 1.67e-4, 1.33e-4, 1e-4]
    assert course("sweeps-rate-last", "train.learning_rate") == [2e-4, 2e-4, 2e-4, 1e-4]
    for rule in ("best_and_worst", "against_chosen"):
        name = f"sweeps-rule-{rule.replace('_', '-')}"
        assert course(name, "select.rule") == ["dataset", rule, rule, rule]
        assert course(name, "generate.num_completions") == [1] * 4
    assert course("sweeps-stepwise-dpo", "select.rule") == ["dataset"] * 4
    assert course("sweeps-offline-dpo", "select.rule") == ["dataset"]
    assert run_of("sweeps-offline-dpo").settings.data.portions == 1


@pytest.mark.parametrize(
    ("point", "twin"),
    [
        ("sweeps-alpha-0", "tiny-dpo"),
        ("sweeps-alpha-0.02", "tiny-selm"),
        ("sweeps-iterations-4", "tiny-dpo"),
        ("sweeps-batch-32", "tiny-dpo"),
        ("sweeps-rate-last", "tiny-dpo"),
        ("sweeps-keep-0.7", "tiny-sera"),
        ("sweeps-selection-0.7", "tiny-sera-selection"),
        ("sweeps-bootstrap-0.0", "tiny-sera-selection"),
        ("sweeps-bootstrap-0.3", "tiny-sera"),
        ("sweeps-bootstrap-1.0", "tiny-best-sera"),
        ("sweeps-gamma-0.3", "tiny-sera"),
    ],
)
def test_points_said_to_equal_another_recipe_do(point: str, twin: str) -> None:
    def determined(name: str) -> dict[str, Any]:
        """What determines each stage, the recipe's name and the report apart."""
        return {
            path: {key: inner for key, inner in settings.items() if key != "recipe"}
            for path, settings in stage_settings(run_of(name)).items()
            if path != "report.yaml"
        }

    assert determined(point) == determined(twin)


@pytest.mark.parametrize("model", FAMILY)
def test_the_readme_names_every_recipe_of_its_folder(model: str) -> None:
    text = (ROOT / "recipes" / model / "README.md").read_text()
    for path in (ROOT / "recipes" / model).glob("*.yaml"):
        parts = [model, *path.stem.split("-")]
        endings = ["-".join(parts[start:]) for start in range(len(parts))]
        named = any(f"`{ending}`" in text or f"`-{ending}`" in text for ending in endings)
        assert path.stem == "base" or named, path


def test_a_recipe_tells_at_once_what_this_version_cannot_run() -> None:
    """Its evaluation needs the ranker too, where no iteration samples or judges."""
    [line] = unsupported_settings(run_of("zephyr-stepwise-dpo"))
    assert line.startswith("rank.ranker pairrm is not part of this version")
    assert len(unsupported_settings(run_of("zephyr-selm"))) == 2
    assert unsupported_settings(run_of("tiny-selm")) == []
