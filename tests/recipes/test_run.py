"""Recipes: inheritance, iterations, seeds, files beside the recipe, and the ranker that the data allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.graph.makefile import run_text
from handbook_ext.graph.run_rules import run_rules
from handbook_ext.recipes.listing import shown_settings
from handbook_ext.recipes.names import paper_row, recipe_files, unusable_files
from handbook_ext.recipes.overrides import parse_data, parse_set
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.yaml_tree import Mark, Tree, merged, read_yaml
from tests.recipe_folder import enter_folder, mine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def test_mappings_merge_and_everything_else_replaces(folder: Path) -> None:
    run = mine("evaluate: {temperatures: [1.0]}\ntrain: {beta: 0.2}\nmodel: {architecture: {hidden_size: 64}}\n")
    assert run.settings.evaluate.temperatures == [1.0]
    assert run.settings.train == resolve("tiny-selm").settings.train.model_copy(update={"beta": 0.2})
    architecture = run.settings.model.architecture
    assert architecture is not None
    assert (architecture["hidden_size"], architecture["model_type"]) == (64, "mistral")


PLACES = ("name_or_path", "architecture", "tokenizer_vocab_size", "chat_template", "revision", "package")


def origin(text: str, name: str = "selm", *, overrides: str = "") -> tuple[object, ...]:
    """What `model` says of where the policy comes from; an architecture by its type."""
    mine(text, name)
    model = resolve(f"mine-{name}", overrides=parse_set(overrides)).settings.model.model_dump()
    model["architecture"] = (model["architecture"] or {}).get("model_type")
    return tuple(model[each] for each in PLACES)


def test_a_checkpoint_alone_takes_the_place_of_an_architecture_and_the_other_way_round(folder: Path) -> None:
    own = "model: {name_or_path: a/b, revision: v1, package: ab==1.0, chat_template: zephyr}\n"
    assert origin("model: {name_or_path: a/b}\n") == ("a/b", None, None, None, None, None)
    assert origin(own) == ("a/b", None, None, "zephyr", "v1", "ab==1.0")
    mine(own, "parent")
    # A checkpoint's template is no part of it: it may be what the recipe wants of any.
    assert origin("base: parent.yaml\nmodel: {name_or_path: c/d}\n") == ("c/d", None, None, "zephyr", None, None)
    stated = "model: {name_or_path: c/d, package: cd==2}\n"
    assert origin("base: parent.yaml\n" + stated) == ("c/d", None, None, "zephyr", None, "cd==2")
    assert origin("base: parent.yaml\nmodel: {dtype: float32}\n") == origin(own, "again")
    back = "base: parent.yaml\nmodel: {architecture: {model_type: llama}, tokenizer_vocab_size: 512}\n"
    assert origin(back) == (None, "llama", 512, "zephyr", None, None)
    assert origin("seed: 1\n", overrides="model.chat_template=zephyr model.name_or_path=e/f") == (
        "e/f", None, None, "zephyr", None, None,
    )  # fmt: skip
    mine("model: {name_or_path: a/b}\n", "shown")
    lines = [line for line in shown_settings(resolve("mine-shown")) if line.startswith(("model.architecture", "model.tokenizer"))]
    assert lines == [f"model.{each}: null   # recipes/mine/shown.yaml:2" for each in PLACES[1:3]]


def test_null_replaces_a_section_and_drops_its_marks() -> None:
    here, there = Mark(Path("a"), 1), Mark(Path("b"), 2)
    parent = Tree({"sft": {"x": [1, 2]}}, {(): here, ("sft",): here, ("sft", "x"): here, ("sft", "x", 0): here})
    result = merged(parent, Tree({"sft": None}, {(): there, ("sft",): there}))
    assert result.values == {"sft": None}
    assert set(result.marks) == {(), ("sft",)}
    assert result.where(("sft", "x")) == there


def test_a_child_with_only_data_is_a_complete_selm_recipe(folder: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).touch()
    run = mine("data: {train: a.jsonl, test: b.jsonl}\n")
    assert [each.name for each in run.iterations] == ["iter0", "iter1", "iter2", "iter3"]
    assert [each.needs.rankings for each in run.iterations] == [False, True, True, True]
    assert [each.settings.train.alpha > 0 for each in run.iterations] == [False, True, True, True]
    assert run.settings.rank.ranker == "reward_model"
    assert run.settings.data.dataset is None
    assert run.trains_reward_model


def test_numbers_are_read_as_numbers(folder: Path) -> None:
    path = folder / "numbers.yaml"
    path.write_text("a: 5e-7\nb: 1E3\nc: .5\nd: 7\ne: '5e-7'\nf: 2024-01-01\ng: 1.5\nh: -.inf\ni: e5\nj: on\n")
    values = read_yaml(path).values
    assert values == {
        "a": 5e-7, "b": 1000.0, "c": 0.5, "d": 7, "e": "5e-7", "f": "2024-01-01", "g": 1.5, "h": float("-inf"),
        "i": "e5", "j": True,
    }  # fmt: skip
    assert mine("train: {learning_rate: 5e-7}\n").settings.train.learning_rate == 5e-7


def test_iterations_inherit_override_and_chain(folder: Path) -> None:
    mine("train: {beta: 0.3}\niterations:\n  iter1: {generate: {top_p: 0.9}}\n  iter3: {train: {beta: 0.4}}\n", "a")
    run = mine("base: a.yaml\niterations:\n  iter1: {generate: {temperature: 1.25}}\n")
    assert [each.settings.train.beta for each in run.iterations] == [0.3, 0.3, 0.3, 0.4]
    first = run.iteration("iter1").settings.generate
    assert (first.top_p, first.temperature, first.batch_size) == (0.9, 1.25, run.settings.generate.batch_size)
    assert [each.starts_from for each in run.iterations] == ["sft", "iter0", "iter1", "iter2"]
    assert [each.index for each in run.iterations] == [0, 1, 2, 3]


def test_ten_comes_after_nine_and_one_portion_gives_all_rows(folder: Path) -> None:
    extra = "".join(f"  iter{number}: {{}}\n" for number in (10, 4, 5, 6, 7, 8, 9))
    run = mine("data: {portions: 1}\niterations:\n" + extra)
    assert [each.name for each in run.iterations] == [f"iter{number}" for number in range(11)]
    assert {each.index for each in run.iterations} == {0}


def test_null_removes_an_inherited_iteration(folder: Path) -> None:
    run = mine("iterations: {iter0: null, iter3: null}\n")
    assert [each.name for each in run.iterations] == ["iter1", "iter2"]
    assert (run.iterations[0].starts_from, run.iterations[0].index) == ("sft", 0)


def test_without_sft_the_first_iteration_starts_from_the_checkpoint(folder: Path) -> None:
    run = mine("sft: null\nmodel: {name_or_path: some/model}\n")
    rules = {rule.settings_file: rule for rule in run_rules(run)}
    assert run.start == "start"
    assert rules["start/evaluate.yaml"].inputs == ["data/rows/test.jsonl"]
    assert rules["iter0/train.yaml"].inputs == ["iter0/pairs.jsonl", "iter0/logprobs"]
    assert rules["iter1/train.yaml"].inputs == ["iter1/pairs.jsonl", "iter1/logprobs", "iter0/policy"]
    assert "sft/sft.yaml" not in rules


def test_a_seed_in_the_name_is_the_seed_of_the_run(folder: Path) -> None:
    plain, seeded = resolve("tiny-selm"), resolve("tiny-selm-seed7")
    assert (seeded.name, seeded.recipe, seeded.settings.seed) == ("tiny-selm-seed7", "tiny-selm", 7)
    assert {each.settings.seed for each in seeded.iterations} == {7}
    for before, after in zip(run_rules(plain), run_rules(seeded), strict=True):
        assert after.settings.model_copy(update={"seed": 1}) == before.settings
    assert any(line == "seed: 7   # run name tiny-selm-seed7" for line in shown_settings(seeded))


def test_files_are_looked_for_beside_the_recipe_that_states_them_then_here(folder: Path) -> None:
    (folder / "recipes/mine/a.jsonl").touch()
    (folder / "a.jsonl").touch()
    (folder / "b.parquet").touch()
    data = mine("data: {train: a.jsonl, test: b.parquet}\n", "files").settings.data
    assert (data.train, data.test, data.dataset) == ("recipes/mine/a.jsonl", "b.parquet", None)
    (folder / "recipes/other").mkdir()
    (folder / "recipes/other/selm.yaml").write_text("base: ../mine/files.yaml\n")
    assert resolve("other-selm").settings.data == data


def test_a_file_outside_the_folder_is_absolute(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "a.json"
    outside.touch()
    data = mine(f"data: {{train: {outside}, test: {outside}}}\n").settings.data
    assert (data.train, data.test) == (str(outside), str(outside))


def test_a_chat_template_file_is_found_too(folder: Path) -> None:
    (folder / "recipes/mine/chat.jinja").touch()
    assert mine("model: {chat_template: chat.jinja}\n").settings.model.chat_template == "recipes/mine/chat.jinja"


@pytest.mark.parametrize(
    ("text", "ranker", "fitted"),
    [
        ("seed: 1\n", "oracle", False),
        ("data: {dataset: some/pairs}\n", "reward_model", True),
        ("data: {dataset: some/pairs}\nrank: {model: some/judge}\n", "reward_model", False),
        ("rank: {ranker: reward_model}\n", "reward_model", True),
        ("iterations: {iter2: {rank: {ranker: reward_model}}}\n", "oracle", True),
    ],
)
def test_the_ranker_auto_depends_on_the_data(folder: Path, text: str, ranker: str, fitted: bool) -> None:
    run = mine(text)
    assert run.settings.rank.ranker == ranker
    assert run.trains_reward_model == fitted
    assert ("ranker/ranker.yaml" in [rule.settings_file for rule in run_rules(run)]) == fitted


VARIANTS = """
variants:
  noisy: {data: {flip_rate: 0.4}, iterations: {iter3: {train: {beta: 0.9}}}}
  short: {generate: {max_new_tokens: 8}}
"""


def test_a_variant_is_laid_over_the_whole_recipe(folder: Path) -> None:
    mine(VARIANTS + "train: {beta: 0.3}\n", "a")
    run = resolve("mine-a-noisy")
    assert (run.name, run.recipe, run.settings.data.flip_rate) == ("mine-a-noisy", "mine-a-noisy", 0.4)
    assert [each.settings.train.beta for each in run.iterations] == [0.3, 0.3, 0.3, 0.9]
    child = mine("base: a.yaml\nvariants: {noisy: {train: {label_smoothing: 0.4}}}\n", "b")
    assert child.settings.data.flip_rate == 0
    both = resolve("mine-b-noisy-short-seed5")
    assert (both.settings.data.flip_rate, both.settings.train.label_smoothing) == (0.4, 0.4)
    assert (both.settings.generate.max_new_tokens, both.settings.seed) == (8, 5)
    assert (both.recipe, both.name, both.variants) == ("mine-b-noisy-short", "mine-b-noisy-short-seed5", ("noisy", "short"))
    for name, words in (
        ("mine-b-loud", "mine-b has no variant 'loud'; it has: noisy, short"),
        ("mine-b-short-short", "no variant"),
    ):
        with pytest.raises(UserError, match=words):
            resolve(name)


def test_what_overrides_a_recipe_is_in_the_name_of_its_run(folder: Path) -> None:
    overrides = parse_set("train.beta=0.5 select.keep=0.5 iterations.iter3=null report.title='a b'")
    run = resolve("tiny-selm-seed4", overrides=overrides)
    assert run.name.startswith("tiny-selm+iterations.iter3-null+report.title-a_b-")
    assert run.name.endswith("+select.keep-0.5+train.beta-0.5-seed4")
    assert run.overrides == ("iterations.iter3=null", "report.title=a b", "select.keep=0.5", "train.beta=0.5")
    assert (run.settings.train.beta, len(run.iterations), run.settings.report.title) == (0.5, 3, "a b")
    assert resolve("tiny-selm", overrides=parse_set("select.keep=0.5 train.beta=0.5")).name == (
        resolve("tiny-selm", overrides=parse_set("train.beta=0.50 select.keep=0.5")).name
    )
    with pytest.raises(UserError, match=r"SET train\.bta: train has no setting 'bta'"):
        resolve("tiny-selm", overrides=parse_set("train.bta=1"))
    for text in ("train.beta", "=1", "train..beta=1", "a=1 a=2", "train.beta='", "train.beta=[1"):
        with pytest.raises(UserError, match=r"^SET: "):
            parse_set(text)


def test_data_from_a_folder_is_another_run(folder: Path) -> None:
    for name in ("mine here/train.jsonl", "mine here/test.parquet", "other/mine here/train.jsonl", "other/mine here/test.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    runs = [resolve("tiny-selm", overrides=parse_data(path)) for path in ("mine here", "other/mine here", "./mine here")]
    assert runs[0].name == runs[2].name != runs[1].name
    assert runs[0].name.startswith("tiny-selm+data-mine_here-")
    assert (runs[0].settings.data.train, runs[1].settings.data.test) == ("mine here/train.jsonl", "other/mine here/test.json")
    assert runs[0].settings.rank.ranker == "reward_model"
    (folder / "mine here/test.jsonl").touch()
    with pytest.raises(UserError, match=r"has test\.jsonl and test.parquet; keep one"):
        parse_data("mine here")
    with pytest.raises(UserError, match="is no folder"):
        parse_data("nowhere")


def test_another_launch_is_the_same_run(folder: Path) -> None:
    text = (
        "sft: {global_batch_size: 192, per_device_train_batch_size: 8}\n"
        "train: {global_batch_size: 48, per_device_train_batch_size: 6}\nlaunch: ddp\n"
    )
    here = mine(text)
    there = resolve("mine-selm", launch="zero3", gpus=3)
    assert (here.launch.processes, there.launch.processes, there.name) == (8, 3, here.name)
    assert [a.settings for a in run_rules(here)] == [b.settings for b in run_rules(there)]
    assert "--config_file recipes/accelerate/zero3.yaml --num_processes 3 scripts/train_sft.py" in run_text(
        there, run_rules(there), Path("runs")
    )
    on_cpu = resolve("mine-selm", launch="ddp-cpu")
    commands = [line for line in run_text(on_cpu, run_rules(on_cpu), Path("runs")).splitlines() if "scripts/" in line]
    assert commands and all(line.startswith("\tOMP_NUM_THREADS=$(THREADS) $(") for line in commands if line.startswith("\t"))
    with pytest.raises(UserError, match=r"sft\.global_batch_size 192 cannot be divided by 5 processes; change one of the two"):
        resolve("mine-selm", gpus=5)
    with pytest.raises(UserError, match=r"LAUNCH: 'zer03' is not a file of .*did you mean 'zero3'"):
        resolve("mine-selm", launch="zer03")
    with pytest.raises(UserError, match="GPUS: the launch cpu has one process, not 4"):
        resolve("tiny-selm", gpus=4)


def test_a_factor_lowers_the_rate_of_an_iteration(folder: Path) -> None:
    run = mine("train: {learning_rate: 3e-4}\niterations: {iter2: {train: {learning_rate_factor: 0.1}}}\n")
    rates = [each.settings.train.learning_rate * each.settings.train.learning_rate_factor for each in run.iterations]
    assert rates[:3] == [3e-4, 3e-4, 3e-4 * 0.1]


def test_what_a_file_says_of_itself_is_not_inherited(folder: Path) -> None:
    mine("paper: SELM table 1\n", "a")
    mine("base: a.yaml\n", "b")
    assert (paper_row(Path("recipes/mine/a.yaml")), paper_row(Path("recipes/mine/b.yaml"))) == ("SELM table 1", "")


@pytest.mark.parametrize("stem", ["selm-iter1", "selm-report", "x-seed3", "x-seeds", "a b", "`touch x`", "-x"])
def test_a_file_that_no_goal_could_spell_is_told(folder: Path, stem: str) -> None:
    Path(f"recipes/mine/{stem}.yaml").write_text("base: ../tiny/selm.yaml\n")
    assert not any(name.startswith("mine-") for name in recipe_files())
    assert len(unusable_files()) == 1


def test_iterations_whose_log_probs_are_compared_encode_alike(folder: Path) -> None:
    text = """
select: {rule: dataset, explore: false}
train: {alpha: 0, max_prompt_length: 99, truncation: as_needed}
iterations: {iter0: {}, iter1: {select: {rule: sera}, train: {truncation: always}}, iter2: null, iter3: null}
"""
    with pytest.raises(UserError, match=r"iter1: train.max_length, .*truncation, legacy_template must be the same in all iterat"):
        mine(text)


def test_a_checkpoint_lies_beside_the_recipe_or_here_and_what_is_no_folder_is_of_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for name in ("recipes/mine/models/x", "models/x", "models/y", "recipes/mine/org/own"):
        (folder / name).mkdir(parents=True)
    for stated, found in {
        "./models/x": "recipes/mine/models/x", "models/x": "recipes/mine/models/x", "./models/y": "./models/y",
        "models/y": "models/y", f"{folder}/models/y": f"{folder}/models/y", "~/models/y": f"{folder}/models/y",
        "org/own": "recipes/mine/org/own", "org/other": "org/other",
    }.items():  # fmt: skip
        run = mine(f"model: {{name_or_path: {stated}}}\nrank: {{fit: {{model: {stated}}}}}\n")
        assert (run.settings.model.name_or_path, run.settings.rank.fit.model) == (found, found)
