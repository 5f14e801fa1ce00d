"""The length-controlled win rate: the package's fit and prediction on made-up verdicts, and what is said where there is none."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.core.machine import has_package
from handbook_ext.judging.verdict_cache import VerdictCache

pytest.importorskip("openai")
from handbook_ext.evaluation import alpaca_eval
from handbook_ext.evaluation.alpaca_eval import AlpacaJudge, Outputs, length_controlled, mean_length, pairwise_matrix, win_rate
from handbook_ext.evaluation.alpaca_package import Row, predicted
from handbook_ext.judging.endpoint import Endpoint

pytestmark = pytest.mark.skipif(not has_package("alpaca_eval"), reason="alpaca-eval is not installed (extra eval)")

COUNT = 120
DIFFICULTY = [random.Random(number).gauss(0, 1) for number in range(COUNT)]


def chance(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.fixture
def gamed(tmp_path: Path) -> Path:
    """A file in the form of the hub's: a baseline told to be verbose, and told to be concise, against itself."""
    path, draw = tmp_path / "df_gamed.csv", random.Random(1)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"])
        for model, shift in (("verbose", -1.0), ("concise", 1.0)):
            for number, hardness in enumerate(DIFFICULTY):
                delta = shift + draw.gauss(0, 0.5)
                out.writerow([model, chance(-1.5 * math.tanh(delta)), number, delta, hardness, False])
    return path


def verdicts(strength: float, taste: float, longer: float, count: int = COUNT) -> list[Row]:
    """Verdicts of a judge with a taste for length, about a model whose answers are longer by so many characters on average."""
    draw, rows = random.Random(7), []
    for number in range(count):
        theirs, ours = draw.randint(150, 250), draw.randint(150, 250) + round(longer)
        logit = strength + taste * math.tanh((ours - theirs) / 60) + 0.3 * DIFFICULTY[number % COUNT]
        rows.append(
            {
                "instruction": f"What is {number}?", "output_1": "x" * theirs, "output_2": "y" * ours, "generator_1": "theirs",
                "generator_2": "ours", "annotator": "judge", "preference": 1 + chance(logit),
            }
        )  # fmt: skip
    return rows


def test_the_win_rate_is_the_mean_over_what_can_be_read() -> None:
    shares = [0.0, 0.25, 1.0, None, 0.5]
    found = win_rate([{"preference": None if share is None else 1 + share} for share in shares])
    assert found.value == 43.75 and (found.n, found.missing, found.unit) == (4, 1, "%")
    spread = math.sqrt(sum((share - 0.4375) ** 2 for share in shares if share is not None) / 3)
    assert found.standard_error == pytest.approx(100 * spread / 2)
    assert win_rate([{"preference": 2.0}]).standard_error is None


def test_length_is_controlled_for(gamed: Path) -> None:
    """An equal model that talks more wins with a judge who likes that; with the length taken out of it, it does not."""
    rows = verdicts(0.0, 2.0, longer=80)
    found = length_controlled(rows, gamed, range(COUNT))
    assert (win_rate(rows).value or 0) > 75
    assert found.value == pytest.approx(50, abs=6) and 0 < (found.standard_error or 0) < 5
    assert (found.n, found.missing, found.not_run) == (COUNT, 0, None)
    better = length_controlled(verdicts(1.0, 2.0, longer=0), gamed, range(COUNT))
    assert better.value == pytest.approx(100 * sum(chance(1 + 0.3 * hardness) for hardness in DIFFICULTY) / COUNT, abs=3)


def test_the_fit_is_the_packages_own(gamed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import pandas
    from alpaca_eval.metrics import get_length_controlled_winrate, glm_winrate

    rows = verdicts(0.4, 1.0, longer=30)
    rows[3]["preference"] = None
    found = length_controlled(rows, gamed, range(COUNT))
    assert glm_winrate.hf_hub_download is huggingface_hub.hf_hub_download
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **words: gamed)
    theirs = get_length_controlled_winrate(pandas.DataFrame(rows), save_weights_dir=None)
    assert found.value == theirs["length_controlled_winrate"]
    assert found.standard_error == theirs["lc_standard_error"]
    assert (found.n, found.missing) == (COUNT - 1, 1)


def test_difficulty_is_that_of_the_instruction_wherever_it_stands(gamed: Path) -> None:
    places = list(range(COUNT))
    random.Random(3).shuffle(places)
    rows = verdicts(0.4, 1.0, longer=30)
    whole, shuffled = (length_controlled([rows[place] for place in order], gamed, order) for order in (range(COUNT), places))
    assert shuffled.value == pytest.approx(whole.value, abs=0.2)
    misplaced = length_controlled([rows[place] for place in places], gamed, range(COUNT))
    assert abs((misplaced.value or 0) - (whole.value or 0)) > 0.2


def test_a_model_against_itself_wins_half(gamed: Path) -> None:
    rows = [{**row, "generator_2": "theirs", "output_2": row["output_1"], "preference": 1.5} for row in verdicts(0, 0, 0)]
    found = length_controlled(rows, gamed, range(COUNT))
    assert (found.value, found.standard_error) == (50.0, 0.0)


def test_without_its_files_there_is_no_value_but_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", "/nowhere")
    found = length_controlled(verdicts(0, 0, 0), None, range(COUNT))
    assert (found.value, found.standard_error, found.n) == (None, None, COUNT)
    reason = "HF_HUB_OFFLINE is set, and the cache does not have it"
    assert found.not_run == f"df_gamed.csv, which the fit needs, is not given and not on the hub ({reason})"


def test_other_instructions_than_alpacaevals_own_have_no_difficulty(gamed: Path) -> None:
    found = length_controlled(verdicts(0, 0, 0), gamed)
    assert found.value is None
    assert found.not_run is not None and found.not_run.startswith("length control knows the difficulty of AlpacaEval's own 805")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"preference": None}, "none of 120 verdicts can be read"), ({"output_1": "x", "output_2": "yy"}, "there is no length")],
)
def test_nothing_is_fitted_where_there_is_nothing_to_fit(gamed: Path, change: dict[str, Any], reason: str) -> None:
    found = length_controlled([{**row, **change} for row in verdicts(0, 0, 0)], gamed, range(COUNT))
    assert found.value is None and reason in str(found.not_run)


@pytest.mark.parametrize(
    ("text", "places", "message"),
    [
        ("", range(COUNT), "cannot be read as CSV"),
        ("a,b\n1,2\n", range(COUNT), "has no column model, index, preference, std_delta_len, instr"),
        (None, range(1, COUNT + 1), "not those of instructions 0, 1, 2"),
    ],
)
def test_a_file_that_is_another_one_is_told(gamed: Path, text: str | None, places: range, message: str) -> None:
    if text is not None:
        gamed.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        length_controlled(verdicts(0, 0, 0), gamed, places)
    with pytest.raises(UserError, match="No such file"):
        length_controlled(verdicts(0, 0, 0), gamed.with_name("other.csv"), places)


def test_published_weights_predict_the_win_rate_of_any_two_models(tmp_path: Path) -> None:
    weights, difficulty = tmp_path / "weights.csv", tmp_path / "difficulty.csv"
    columns = "np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)"
    weights.write_text(f",{columns}\nbase,0,0,0\nsmall,-1,0.5,-0.7\nlarge,-2,0.1,0.4\n", encoding="utf-8")
    difficulty.write_text("index,instruction_difficulty\n0,-1.0\n1,0.0\n2,2.0\n", encoding="utf-8")
    hand = [chance(-1.1 + 0.4 * hardness) for hardness in (-1, 0, 2)]
    value, error = predicted("small", "large", weights, difficulty)
    assert value == pytest.approx(100 * sum(hand) / 3)
    mean = sum(hand) / 3
    assert error == pytest.approx(100 * math.sqrt(sum((each - mean) ** 2 for each in hand) / 2 / 3))
    assert predicted("large", "small", weights, difficulty)[0] == pytest.approx(100 - value)
    assert predicted("small", "large", weights, difficulty, rows=2)[0] == pytest.approx(50 * sum(hand[:2]))
    with pytest.raises(UserError, match="no weights of 'huge'; it has those of 3 models"):
        predicted("huge", "base", weights, difficulty)
    with pytest.raises(UserError, match=r"difficulty\.csv: has no column not_gamed"):
        predicted("small", "base", difficulty, weights)


def test_lengths_are_characters_cut_as_on_the_leaderboard() -> None:
    found = mean_length(["ab", "", "äöü\n"])
    assert (found.value, found.n, found.unit) == (2.0, 3, "characters")
    assert mean_length(["a", "bb"]).value == 1.0


class Lengths(AlpacaJudge):
    """A judge with a taste for length, and no endpoint."""

    def _choices(self, questions: list[Any], options: dict[str, Any]) -> list[Any]:
        self.questions = getattr(self, "questions", 0) + len(questions)
        return [self._choice(question[-1]["content"]) for question in questions]

    def _choice(self, question: str) -> dict[str, Any]:
        first, second = (part.split('"""')[1] for part in question.split('"output": ')[1:])
        share = chance((len(first) - len(second)) / 50)
        top = [{"token": "m", "logprob": math.log(share)}, {"token": "M", "logprob": math.log(1 - share)}]
        return {"logprobs": {"content": [{"top_logprobs": top}]}}


@pytest.fixture
def policies() -> list[Outputs]:
    draw = random.Random(5)
    return [
        Outputs(name, [name[0] * draw.randint(low, low + 40) for _ in range(COUNT)])
        for name, low in (("iter3", 60), ("iter2", 50), ("start", 20))
    ]


def test_a_matrix_has_each_policy_against_each_other_one(gamed: Path, policies: list[Outputs], tmp_path: Path) -> None:
    judge = Lengths("judge", Endpoint(), cache=VerdictCache(tmp_path / "verdicts.sqlite"))
    instructions = [f"What is {number}?" for number in range(COUNT)]
    found = pairwise_matrix(judge, instructions, policies, gamed=gamed, places=range(COUNT))
    assert (found.names, found.measure, found.not_run) == (("iter3", "iter2", "start"), "lc_win_rate", None)
    for row in range(3):
        assert (found.values[row][row], found.standard_errors[row][row]) == (50.0, 0.0)
        for column in range(3):
            assert (found.values[row][column] or 0) + (found.values[column][row] or 0) == pytest.approx(100)
            assert found.standard_errors[row][column] == found.standard_errors[column][row]
    assert judge.questions <= 3 * COUNT
    direct = length_controlled(judge.annotate(instructions, policies[0], policies[2]), gamed, range(COUNT))
    assert found.values[0][2] == direct.value
    plain = pairwise_matrix(judge, instructions, policies, gamed=gamed)
    assert plain.measure == "win_rate" and "AlpacaEval's own 805 instructions" in str(plain.not_run)
    assert plain.values[0][2] == win_rate(judge.annotate(instructions, policies[0], policies[2])).value
    assert (plain.values[0][2] or 0) > 60


def test_alpacaevals_own_instructions_are_known_by_their_hash(monkeypatch: pytest.MonkeyPatch, gamed: Path) -> None:
    import hashlib
    import json

    rows = verdicts(0.4, 1.0, longer=30)
    written = json.dumps([row["instruction"] for row in rows])
    monkeypatch.setattr(alpaca_eval, "INSTRUCTIONS_SHA256", hashlib.sha256(written.encode()).hexdigest())
    assert length_controlled(rows, gamed).value == length_controlled(rows, gamed, range(COUNT)).value
    assert length_controlled(rows[::-1], gamed).value is None
