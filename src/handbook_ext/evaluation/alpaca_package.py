"""The package alpaca_eval: its annotator, its metrics and its fit, fed from this machine. The only module that imports it.

It reads the hub in three places: for prompts and baseline outputs, which are never asked of it here, and for df_gamed.csv and
instruction_difficulty.csv. `_local_files` puts files of this machine in the place of the last two, and nothing else.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from handbook_ext.core.errors import UserError
from handbook_ext.core.records import Messages

EVALUATOR = "weighted_alpaca_eval_gpt4_turbo"
"""The package's configuration for AlpacaEval 2: a judge's probability of `m` against `M`."""
GAMED, DIFFICULTY = "df_gamed.csv", "instruction_difficulty.csv"
BIAS, SLOPE = "not_gamed_baseline.astype(float)", "instruction_difficulty"
"""Columns of the published weights: a model's strength, and how it changes with the difficulty of an instruction."""
MARKS = ("<|im_start|>", "<|im_end|>")
TOP_P = 1.0  # What the package's own completions send beside the options of its configuration.

Row = dict[str, Any]
"""An annotation with the package's columns: instruction, output_1 (the baseline's), output_2, preference from 1 to 2, ..."""
Complete = Callable[[list[Messages], dict[str, Any]], Sequence[dict[str, Any] | None]]
"""From messages and options of requests to the first choice of each reply, None where there is none."""


def annotator_name(model: str) -> str:
    """Returns what annotations by a judge are called: the package's name for its own judge alone."""
    return EVALUATOR if model == _packaged()["completions_kwargs"]["model_name"] else f"weighted_alpaca_eval:{model}"


def annotated(pairs: Sequence[Row], model: str, complete: Complete) -> list[Row]:
    """Returns the pairs (instruction, output_1, output_2, and what else they have) with the judge's preference, in their order.

    Everything but the sending of requests is the package's: prompt, seeds, order of the two outputs, parser. A preference is 1
    where output_1 surely wins, 2 where output_2 does, 1.5 unasked where both are the same text, None where it cannot be read.
    """
    package, configuration = _package(), _packaged()
    configuration["completions_kwargs"]["model_name"] = model
    frame = Path(configuration["prompt_template"]).read_text(encoding="utf-8")

    def completions(prompts: Sequence[str], model_name: str, **options: Any) -> dict[str, list[Any]]:
        """Returns the choices in the form of the package's own `openai_completions`."""
        # The marks of messages within an answer would end the question early, or add a speaker to it.
        whole = [all(prompt.count(mark) == frame.count(mark) for mark in MARKS) for prompt in prompts]
        asked = [package.utils.prompt_to_chatml(prompt.strip()) for prompt, good in zip(prompts, whole, strict=True) if good]
        found = iter(complete(asked, {"top_p": TOP_P, **options}))
        # The parser refuses an empty text, and the package then takes the annotation for missing.
        return {configuration["completion_key"]: [next(found) or "" if good else "" for good in whole]}

    with tempfile.TemporaryDirectory() as folder, _silent():
        file = Path(folder, "configs.yaml")
        file.write_text(yaml.safe_dump({annotator_name(model): configuration}), encoding="utf-8")
        annotator = package.annotators.PairwiseAnnotator(annotators_config=file, caching_path=None)
        for each in annotator.annotators.values():
            each.fn_completions = completions
        rows = annotator.annotate_pairs(list(pairs), chunksize=None)
    return [{name: _known(value) for name, value in row.items()} for row in rows]


def win_rate(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the package's `get_winrate`: win_rate and standard_error (%), n_total of the preferences that are numbers, ..."""
    with _silent():
        found = _package().metrics.get_winrate([{"preference": row["preference"]} for row in rows])
    return {name: float(value) for name, value in found.items()}


def length_controlled(rows: Sequence[Row], places: Sequence[int], gamed: Path) -> dict[str, float]:
    """Returns the package's `get_length_controlled_winrate`: length_controlled_winrate and lc_standard_error (%), ...

    `places` are the numbers of the instructions in AlpacaEval's own set, by which the package looks up their difficulty.
    """
    glm, pandas = _package().metrics.glm_winrate, _pandas()
    columns = ("preference", "output_1", "output_2", "generator_1", "generator_2")
    table = pandas.DataFrame([{name: row[name] for name in columns} for row in rows], index=list(places))
    table["preference"] = table["preference"].astype(float)
    _check_gamed(gamed, places)
    # The fit switches an option of scikit-learn on for the whole process; here it ends with the fit.
    with _local_files({GAMED: gamed}), glm.sklearn.config_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = glm.get_length_controlled_winrate(table, save_weights_dir=None)
    return {name: float(value) for name, value in found.items()}


def predicted(model: str, baseline: str, weights: Path, difficulty: Path, rows: int | None = None) -> tuple[float, float]:
    """Returns the length-controlled win rate (%) of a model against a baseline by fitted weights, and its standard error.

    The mean is the package's `predict_winrate`. `rows` is how many annotations the model has: the package looks difficulty up
    by row number, so a model with 803 of them is predicted on the first 803 difficulties.
    """
    glm = _package().metrics.glm_winrate
    table, hardness = _table(weights, [BIAS, SLOPE], index=0), _table(difficulty, [SLOPE], index=0).iloc[:rows]
    for name in (model, baseline):
        if name not in table.index:
            raise UserError(f"{weights}: has no weights of {name!r}; it has those of {len(table)} models")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, DIFFICULTY)
        hardness.to_csv(file)
        with _local_files({DIFFICULTY: file}):
            mean = glm.predict_winrate(model, baseline, weights=table)
    delta = table.loc[model] - table.loc[baseline]
    chances = glm._logistic(delta[BIAS] + delta[SLOPE] * hardness.squeeze())
    return float(mean) * 100, float(chances.sem()) * 100


def _packaged() -> Row:
    """Returns the package's configuration of AlpacaEval 2, with the whole path of its prompt."""
    folder = _package().constants.EVALUATORS_CONFIG_DIR
    configuration: Row = yaml.safe_load((folder / EVALUATOR / "configs.yaml").read_text(encoding="utf-8"))[EVALUATOR]
    return {**configuration, "prompt_template": str(folder / configuration["prompt_template"])}


def _check_gamed(path: Path, places: Sequence[int]) -> None:
    """Raises UserError for a file that is not df_gamed.csv, or has no difficulty for some of the instructions."""
    found = _table(path, ["model", "index", "preference", "std_delta_len", SLOPE, "not_gamed_baseline"])
    known = found.drop_duplicates("index")["index"]
    # The package takes the number of a row for that of its instruction.
    if not (known == known.index).all() or not set(places) <= set(known):
        raise UserError(
            f"{path}: its first rows are not those of instructions 0, 1, 2, ... up to {max(places)}; give the file "
            "as tatsu-lab/alpaca_eval has it"
        )


def _table(path: Path, columns: Sequence[str], index: int | None = None) -> Any:
    """Returns a CSV file as a table of pandas; raises UserError where it is none, or lacks a column."""
    try:
        found = _pandas().read_csv(path, index_col=index)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); give the file as tatsu-lab/alpaca_eval has it") from None
    if missing := [name for name in columns if name not in found.columns]:
        raise UserError(f"{path}: has no column {', '.join(missing)}; give the file as tatsu-lab/alpaca_eval has it")
    return found


def _known(value: Any) -> Any:
    """Returns a value of the package's tables, which say NaN for what is missing."""
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def _local_files(files: Mapping[str, Path]) -> Iterator[None]:
    """Lets the package find files here that it would download."""
    glm = _package().metrics.glm_winrate
    download = glm.hf_hub_download
    glm.hf_hub_download = lambda *, filename, **_: str(files[filename])
    try:
        yield
    finally:
        glm.hf_hub_download = download


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps what the package logs of every row from the screen; what it could not read is counted by the caller."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _package() -> Any:
    """Returns the package, imported only here since that takes seconds; raises UserError where it is not installed."""
    level = logging.root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It asks setuptools for versions, which setuptools deprecates.
            import alpaca_eval.metrics.glm_winrate  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UserError(f"AlpacaEval: {error.name} is not installed; install the extra eval: pip install -e '.[eval]'") from None
    finally:
        logging.root.setLevel(level)  # The package makes every library of the process talk.
    return alpaca_eval


def _pandas() -> Any:
    """Returns pandas, which warns of numbers that torch was told to flush where it is imported behind it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pandas  # noqa: PLC0415 - see above
    return pandas
