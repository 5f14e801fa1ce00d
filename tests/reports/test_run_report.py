"""The report, from small made-up runs: numbers, pages, warnings and refusals."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from handbook_ext.core.errors import UserError
from handbook_ext.reports.answers import shown_answers
from handbook_ext.reports.pages import render_report
from handbook_ext.reports.run_report import read_pairs, read_run, read_stages, summarise
from tests.reports.set_files import measure, write_set

SCRIPT = Path(__file__).parents[2] / "scripts" / "write_report.py"
PICTURES = {
    f"{name}{card}.png" for name in ("reward_and_length", "reward_distribution", "training_curves") for card in ("", "-dark")
}


@pytest.fixture(scope="session")
def script() -> ModuleType:
    """scripts/write_report.py as a module."""
    spec = importlib.util.spec_from_file_location("write_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.manifest_path = lambda path: Path("nowhere")  # The made-up runs have no artifacts to verify.
    return module


def write_settings(folder: Path, iterations: int = 3, start: str = "sft", **report: Any) -> None:
    """A report.yaml as the recipe resolves to."""
    names = [start, *(f"iter{number}" for number in range(iterations))]
    folder.mkdir(parents=True, exist_ok=True)
    recipe = report.pop("recipe", "tiny-selm")
    settings = {"stage": "report", "recipe": recipe, "policies": names, "title": report.pop("title", recipe), "report": report}
    (folder / "report.yaml").write_text(json.dumps(settings))


def write_evaluation(folder: Path, mean: float, seed: int = 1, ranker: str = "oracle", judge: str = "") -> None:
    """An eval.json of 40 prompts whose rewards lie around `mean`."""
    rng = np.random.default_rng([seed, int(1000 * mean)])
    decodings = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 0.7)):
        rewards = mean + rng.normal(0, 0.1, 40)
        rows = [{"prompt_id": f"p{i}", "reward": float(one), "tokens": 5 + i % 7} for i, one in enumerate(rewards)]
        decodings[name] = {"temperature": temperature, "rows": rows}
    about = {"policy": {"name": folder.name, "sha256": "0" * 64}, "seed": seed, "ranker": ranker, "judge": judge}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(about | {"decodings": decodings}))


def write_manifest(path: Path, stage: str, commit: str = "c" * 40) -> None:
    """A manifest of 10 rows in, 8 out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {"in": 10, "out": 8, "dropped": {"identical|pair": 2}}
    manifest = {"stage": stage, "seconds": 1.5, "counts": counts, "code": {"commit": commit, "dirty": False}, "inputs": {}}
    manifest |= {"sha256": "0" * 64, "files": {}, "settings": {}, "key": "", "policy": None}
    path.write_text(json.dumps(manifest | {"hardware": {"cores": 2}, "packages": {"torch": "2.13.0"}, "seed": 1}))


def make_run(folder: Path, iterations: int = 3, *, start: str = "sft", gain: float = 0.1, **about: Any) -> Path:
    """A finished run whose mean reward grows by `gain` each iteration."""
    write_settings(folder, iterations, start, recipe=about.pop("recipe", "tiny-selm"))
    for index, name in enumerate([start, *(f"iter{number}" for number in range(iterations))]):
        one = folder / name
        write_evaluation(one, 0.3 + gain * index, **about)
        write_manifest(one / "policy" / "manifest.json", "train")
        if index == 0:
            continue
        write_manifest(one / "pairs.manifest.json", "select")
        sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        pair = sides | {"chosen_origin": "offline", "rejected_origin": "on_policy", "explore": None, "margin": None}
        pair |= {"prompt": [{"role": "user", "content": "Which?"}], "chosen_id": "c", "rejected_id": "r", "explore_id": None}
        lines = [json.dumps(pair | {"prompt_id": str(i), "swapped": bool(i)}) + "\n" for i in range(2)]
        (one / "pairs.jsonl").write_text("".join(lines))
        rows = [{"step": step, "loss": 0.7 / step, "rewards/margins": 0.1 * step} for step in (1, 2)]
        (one / "policy" / "trainer_state.json").write_text(json.dumps({"log_history": [*rows, {"train_loss": 1}]}))
    return folder


def numbers(*folders: Path, beside: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The summary of runs of one recipe, with at most one recipe beside."""
    groups = [[read_run(folder) for folder in group] for group in (folders, beside) if group]
    return summarise(groups, title="t", resamples=50, confidence=0.9)


def test_run_is_read_in_numeric_order(tmp_path: Path) -> None:
    """iter10 comes after iter2; what was not evaluated is skipped and named."""
    run_folder = make_run(tmp_path / "run", iterations=11)
    (run_folder / "iter5" / "eval.json").unlink()
    run = read_run(run_folder)
    assert [*run.policies] == ["sft", *(f"iter{number}" for number in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10))]
    assert run.skipped == ["iter5"]
    assert [*read_run(run_folder, ["iter2", "iter1"]).policies] == ["sft", "iter2", "iter1"]
    assert [row["step"] for row in run.history["iter0"]] == [1, 2]


def test_stages_and_pairs_tell_counts_and_origins(tmp_path: Path) -> None:
    """In the order of the stages; a manifest that says little is no error."""
    folder = make_run(tmp_path / "run") / "iter0"
    (folder / "completions.manifest.json").write_text("{}")
    rows = [[row[key] for key in ("stage", "in", "out", "seconds")] for row in read_stages(folder)]
    assert rows == [["completions", None, None, None], ["select", 10, 8, 1.5], ["train", 10, 8, 1.5]]
    assert list(read_pairs(folder / "pairs.jsonl").values()) == ["iter0", 2, 0.0, 1.0, 0.5]
    (folder / "pairs.jsonl").write_text("")
    assert read_pairs(folder / "pairs.jsonl")["chosen"] == 0.0


def test_summary_of_seeds_with_a_recipe_beside(tmp_path: Path) -> None:
    """Each seed is compared with its own SFT policy, the recipes by seed, and only iterations that every seed has."""
    ours = [make_run(tmp_path / f"selm{seed}", iterations=2 + seed % 3, seed=seed) for seed in (1, 2)]
    other = [make_run(tmp_path / f"dpo{seed}", seed=seed, recipe="tiny-dpo", gain=0.0) for seed in (2, 3)]
    summary = numbers(*ours, beside=tuple(other))
    last = summary["recipes"][0]["policies"][-1]["sampled"]
    assert (summary["recipes"][0]["seeds"], summary["recipes"][0]["left_out"]) == ([1, 2], [["iter3"], []])
    assert last["vs_start"]["win_rate"].side(0.5) == 1
    assert last["vs_start"]["gain"].value == pytest.approx(0.3, abs=0.05)
    assert [one["recipe"] for one in summary["beside"]] == ["tiny-dpo"]
    assert (summary["beside"][0]["policy"], summary["beside"][0]["seeds"]) == (["iter2"], 1)
    assert summary["beside"][0]["decodings"]["greedy"]["win_rate"].side(0.5) == 1


def test_report_of_one_run(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """All files and nothing beside them, the same bytes when repeated, the table on the console, a page without links."""
    folder = make_run(tmp_path / "run", recipe="<b>evil</b>")
    script.main([str(folder)])
    report = folder / "report"
    first = {path.name: path.read_bytes() for path in report.iterdir()}
    script.main([str(folder)])
    assert first == {path.name: path.read_bytes() for path in report.iterdir()}
    assert first.keys() == PICTURES | {"report.md", "report.html", "summary.json", "manifest.json"}
    assert not list(folder.glob(".report*"))
    summary = json.loads(first["summary.json"])
    win = summary["recipes"][0]["policies"][-1]["greedy"]["vs_start"]["win_rate"]
    assert win["low"] <= win["value"] <= win["high"]
    share = f"{100 * win['value']:.1f} % [{100 * win['low']:.1f}, {100 * win['high']:.1f}]"
    assert f"iter2 beats the SFT policy in {share} of 40 prompts, decoded greedily" in summary["conclusions"][0]
    assert "one seed and ignores training noise" in summary["conclusions"][0] and summary["warnings"] == []
    printed = capsys.readouterr().out
    assert "true reward, greedy" in printed and str(report / "report.html") in printed
    page = first["report.html"].decode()
    assert "<b>evil" not in page and "&lt;b&gt;evil" in page and "identical/pair: 2" in page
    assert page.count("data:image/png;base64,") == len(PICTURES) and not re.search(r'(src|href)="(?!data:)', page)


def test_report_of_seeds_says_what_its_intervals_cover(tmp_path: Path, script: ModuleType) -> None:
    """Over seeds and prompts, in the folder that was asked for."""
    ours = [make_run(tmp_path / f"selm{seed}", seed=seed) for seed in (1, 2)]
    other = make_run(tmp_path / "dpo", recipe="tiny-dpo", gain=-0.1)
    out = tmp_path / "seeds" / "report"
    script.main([*map(str, ours), "--beside", str(other), "--out", str(out)])
    text = (out / "report.md").read_text()
    assert text.startswith("# tiny-selm, 2 seeds\n")
    assert "of 40 prompts for each of 2 seeds" in text and "over seeds and prompts" in text
    assert "tiny-dpo: iter2 falls behind the SFT policy, winning only" in text
    assert "- tiny-dpo: iter2 fell against iter1: true reward -0." in text
    assert "tiny-selm iter2 beats tiny-dpo iter2 in " in text


def test_report_without_training_logs_or_manifests(tmp_path: Path, script: ModuleType) -> None:
    """A checkpoint evaluated beside its start is enough; the ranker's name is in each heading."""
    script.main([str(make_run(tmp_path / "alone", iterations=0))])
    assert "no iteration has been evaluated" in (tmp_path / "alone" / "report" / "report.md").read_text()
    for name, mean in (("start", 0.3), ("iter1", 0.301)):
        write_evaluation(tmp_path / name, mean, ranker="reward_model")
    write_settings(tmp_path, start="start")
    script.main([str(tmp_path)])
    text = (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "training_curves.png").exists()
    assert "reward (by reward_model), greedy" in text and "true reward" not in text
    assert "iter1 cannot be told apart from the starting policy" in text
    assert "The rewards come from reward_model: of policies that it labelled" in text
    assert "## tiny-selm: Stages" not in text


def test_warnings_and_settings(tmp_path: Path, script: ModuleType) -> None:
    """Iterations by different commits are flagged, and so are those left out; report.yaml is obeyed."""
    folder = make_run(tmp_path / "run")
    write_settings(folder, title="My run", bootstrap_resamples=100, confidence=0.8)
    write_manifest(folder / "iter2" / "policy" / "manifest.json", "train", commit="d" * 40)
    (folder / "iter1" / "eval.json").unlink()
    script.main([str(folder)])
    text = (folder / "report" / "report.md").read_text()
    assert "different commits" in text and "dddddddddddd made iter2" in text
    assert "iter1 left out" in text
    assert text.startswith("# My run\n") and "Brackets hold 80 % bootstrap intervals (100 resamples)" in text


ROWS = [{"prompt_id": "p0", "reward": 1.0, "tokens": 3}]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decodings": None}, "not a usable evaluation"),
        ({"decodings": {"greedy": {"temperature": 0.0}}}, "KeyError.'rows'"),
        ({"decodings": {"greedy": {"temperature": 0.0, "rows": ROWS * 2}}}, "repeats a prompt"),
        ({"decodings": {"greedy": {"temperature": 0.0, "rows": []}}}, "is empty"),
        ({"decodings": {"greedy": {"temperature": 0.0, "rows": [ROWS[0] | {"reward": float("nan")}]}}}, "holds nan"),
        ({"decodings": {"greedy": {"temperature": 0.0, "rows": ROWS}}}, "has not the prompts and decodings of sft"),
        ({"ranker": "judge"}, "evaluate again with one"),
    ],
)
def test_evaluations_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """The message names the file."""
    folder = make_run(tmp_path / "run")
    path = folder / "iter1" / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=words) as caught:
        read_run(folder)
    assert str(path) in str(caught.value)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    """A broken line, a manifest that is no object, half an eval.json, and no starting policy."""
    folder = make_run(tmp_path / "run") / "iter1"
    # The file that is read last is broken first, so that each refusal is reached.
    for name, text in (("pairs.jsonl", '{"chosen_origin": 1}\n'), ("policy/manifest.json", "[1]"), ("eval.json", "{")):
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=re.escape(str(folder / name))):
            read_run(folder.parent)
    (folder.parent / "sft" / "eval.json").unlink()
    with pytest.raises(UserError, match=r"run: has no sft/eval.json; evaluate the starting policy first"):
        read_run(folder.parent)


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Another ranker, another recipe, the same seed twice."""
    first = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="report them apart"):
        numbers(first, make_run(tmp_path / "b", seed=2, ranker="reward_model"))
    with pytest.raises(UserError, match="after --beside"):
        numbers(first, make_run(tmp_path / "c", seed=2, recipe="tiny-dpo"))
    with pytest.raises(UserError, match="name each seed once"):
        numbers(first, make_run(tmp_path / "d"))


def test_the_report_shows_answers_and_leaves_out_what_has_no_verdict(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("sft", "iter0", "iter1", "iter2"):
        path = run / name / "eval.json"
        content = json.loads(path.read_text())
        for decoding in content["decodings"].values():
            for number, row in enumerate(decoding["rows"]):
                said = f"{name} says\n**{number}**" + " so" * (900 * (number == 1))
                row |= {"prompt": f"What is <b>{number}</b>?", "text": said, "finish_reason": "length" if number == 1 else "stop"}
        content["decodings"]["sampled"]["rows"][5]["reward"] = None if name == "iter1" else 0.5
        path.write_text(json.dumps(content))
    found = read_run(run)
    assert found.unjudged == 1
    assert {len(scores.prompt_ids) for policy in found.policies.values() for scores in [policy["sampled"]]} == {39}
    summary = summarise([[found]], title="t", resamples=50, confidence=0.9)
    summary["answers"] = shown_answers(run, ["sft", "iter2"], "sampled")
    files = render_report([[found]], summary)
    text, page = files["report.md"].decode(), files["report.html"].decode()
    assert "1 held-out prompts are left out, since the judge gave some policy's answer to them no readable verdict." in text
    assert "**What is <b>0</b>?**" in text and "tokens: sft says **0**\n" in text and "tokens: iter2 says **0**\n" in text
    # On a terminal short and on one line; whole on the page.
    assert "tokens, cut: sft says **1** so so" in text and "so so …" in text and text.count(" so") < 500 < page.count(" so")
    assert "sft says\n**0**" in page and "What is &lt;b&gt;0&lt;/b&gt;?" in page and "<b>0</b>" not in page
    # What needs a script is hidden until it runs; all else is there without.
    assert '<div class="search" hidden>' in page and page.count("<details") == page.count("</details>") > 20
    assert "10 first, picked by nobody" in text and "10 first, picked by nobody" in page


def test_a_report_is_made_again_where_an_evaluation_on_a_prompt_set_came_or_changed(tmp_path: Path, script: ModuleType) -> None:
    folder = make_run(tmp_path / "run", 1)
    shown = []
    for value in (20.0, 30.0):
        write_set(folder / "iter0", {"lc_win_rate": measure(value, 0.5)}, overlap=2)
        script.main([str(folder)])
        summary = json.loads((folder / "report" / "summary.json").read_text())
        shown.append(summary["sets"]["rows"][0]["values"])
    assert shown == [{"iter0": "20.00 ± 0.50"}, {"iter0": "30.00 ± 0.50"}]
    page = (folder / "report" / "report.md").read_text()
    assert "30.00 ± 0.50" in page and "alpaca: training has seen 2 of the 805 prompts" in page
