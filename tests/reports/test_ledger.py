"""A packed run is checked from its parts: it holds as it is, and with a value altered it does not, where that can be told."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handbook_ext.core.errors import UserError
from handbook_ext.reports.ledger import (
    Group,
    add_to_ledger,
    content_groups,
    ledger_measurements,
    measurements_of,
    refuse_faults,
    verified_ledger,
)
from handbook_ext.reports.ledger_archive import Ledger, archive_bytes
from handbook_ext.reports.ledger_pack import packed
from tests.recipe_folder import ROOT
from tests.reports.forging import Way, altered, another, closed, leaves, opened, rehashed

# What nothing else in a ledger holds, of a file in which it alone was altered: ledger/README.md says so.
UNSEEN = [
    r".*manifest\.json (peak_memory|launch|files\.\S+\.mtime_ns)\b.*",
    # The report repeats those of the loop's own stages.
    r"(check\.|report/|prompts/|\w+/(quiz|harness)/)\S*manifest\.json (seconds|hardware|packages|code)\b.*",
    r"\w+(/\w+)?/manifest\.json files\.\S+\.size",  # Of weights and rows that are not inside.
    r"\w+/harness/eval\.manifest\.json harness\.(version|\S*\.(task|unit|metric|num_fewshot|definition|version|truncated))\b.*",
    r".*manifest\.json (engine|steps|weights|explored|rows|held_out_prompts_in_train)\b.*",
    r"\w+/quiz/eval\.manifest\.json key",  # Of settings from which a host was taken out.
    r"sft/policy/trainer_state\.json .*",
]


def faults(ledger: Ledger) -> list[str]:
    return [fault for group in content_groups(ledger) for fault in group.faults]


def test_a_finished_run_holds_and_its_file_says_so(made: Path, ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "mine-selm.ledger.zip"
    path.write_bytes(archive_bytes(ledger))
    read, groups = verified_ledger(path)
    refuse_faults(path, groups)
    assert read == ledger
    assert [group.name for group in groups] == ["archive", "manifests", "chain", "settings", "evaluations", "summary", "sets"]
    assert "those of recipe mine-selm here" in groups[3].words and "6 evaluations on prompt sets" in groups[6].words


def test_a_ledger_has_no_weights_no_paths_and_no_hosts(made: Path, ledger: Ledger) -> None:
    text = b"".join(ledger.files.values()).decode()
    assert not [name for name in ledger.files if not name.endswith((".json", ".jsonl", ".yaml"))]
    assert str(made.resolve()) not in text and str(Path.home()) + "/" not in text
    assert "node17" not in text and "http://<host>/v1" in text
    assert not [name for name in ledger.files if name.startswith("data/rows/") and name.endswith("jsonl")]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_altered_value_anywhere_is_refused(made: Path, ledger: Ledger, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ledger.files)))
    path, _ = data.draw(st.sampled_from(list(leaves(opened(name, ledger.files[name])))))
    if path and not any(re.fullmatch(form, f"{name} {'.'.join(map(str, path))}") for form in UNSEEN):
        assert faults(altered(ledger, name, path, another)), (name, path)


SHALLOW = [
    ("iter1/policy/manifest.json", ("key",), "the key of its manifest is not"),
    ("iter1/policy/manifest.json", ("sha256",), "the sha256 of its manifest is not"),
    ("iter1/policy/manifest.json", ("policy",), "the policy's hash is not that of its weights"),
    ("iter1/policy/manifest.json", ("start",), "was trained from another policy than iter0"),
    ("iter1/policy/manifest.json", ("inputs", "pairs.jsonl"), r"was made from another pairs\.jsonl"),
    ("iter1/policy/manifest.json", ("settings", "train", "beta"), r"train\.beta is 1\.2 in its manifest and 0\.2 in train\.yaml"),
    ("iter1/policy/manifest.json", ("seed",), "says seed 2, its settings 1"),
    ("iter1/policy/manifest.json", ("counts", "in"), "rows in are not"),
    ("iter1/policy/manifest.json", ("seconds",), r"seconds is"),
    ("iter1/policy/manifest.json", ("hardware", "cpu"), r"hardware\.cpu is"),
    ("iter1/pairs.manifest.json", ("counts", "out"), "rows in are not|has 3 rows"),
    ("iter1/pairs.manifest.json", ("swapped",), "counts the pairs as"),
    ("iter1/train.yaml", ("train", "beta"), r"train\.beta is"),
    ("iter1/pairs.jsonl", (0, "chosen", 0, "content"), r"pairs\.jsonl is not what its manifest says"),
    ("iter1/quiz/answers.jsonl", (0, "seed"), r"answers\.jsonl is not what its manifest says"),
    ("prompts/quiz/prompts.jsonl", (0, "category"), r"prompts\.jsonl is not what its manifest says"),
    ("iter1/policy/trainer_state.json", ("log_history", 0, "loss"), r"first\.loss is"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "words"), SHALLOW)
def test_a_value_that_was_altered_alone_is_told_by_what_it_breaks(
    made: Path, ledger: Ledger, name: str, path: Way, words: str
) -> None:
    found = faults(altered(ledger, name, path, another))
    assert any(re.search(words, fault) for fault in found), found


# An attacker who also makes the manifest anew, so that the file has its hash: the numbers alone then speak.
DEEP = [
    ("iter1/eval.json", ("decodings", "sampled", "mean_reward"), "mean_reward is"),
    ("iter1/eval.json", ("decodings", "greedy", "rows", 2, "reward"), "reward of row"),
    ("iter1/eval.json", ("decodings", "greedy", "rows", 0, "text"), "reward of row"),
    ("iter1/eval.json", ("decodings", "greedy", "rows", 2, "tokens"), "mean_tokens is"),
    ("iter1/eval.json", ("decodings", "greedy", "unjudged"), "unjudged is"),
    ("iter1/eval.json", ("implicit", "kl"), "implicit.kl is"),
    ("iter1/eval.json", ("implicit", "rows", 1, "log_ratio"), "implicit"),
    ("iter1/eval.json", ("policy", "sha256"), "made of another policy"),
    ("iter1/quiz/eval.json", ("measures", "single", "value"), "single.value|value is|single"),
    ("iter1/quiz/eval.json", ("measures", "vs_other", "standard_error"), "standard_error is"),
    ("iter1/quiz/eval.json", ("measures", "single", "missing"), "missing is"),
    ("iter1/quiz/eval.json", ("measures", "single", "judge", "model"), "was judged by"),
    ("iter1/quiz/eval.json", ("measures", "length", "value"), "length"),
    ("iter1/quiz/eval.json", ("rows", 4, "verdicts", "single", 0, 1), "single"),
    ("iter1/quiz/eval.json", ("rows", 4, "verdicts", "vs_other", 0, 0), "vs_other"),
    ("iter1/quiz/eval.json", ("rows", 4, "answers", 1, "text"), "is not the one in answers.jsonl"),
    ("iter1/quiz/eval.json", ("rows", 4, "verdicts", "win_rate", 0, 0), "win_rate"),
    ("iter1/quiz/eval.json", ("contaminated", "overlap"), "overlap is"),
    ("iter1/quiz/eval.json", ("decoding", "temperature"), "decoding.temperature"),
    ("iter1/quiz/eval.json", ("set", "of"), "set.of"),
    ("iter1/harness/eval.json", ("measures", "hellaswag", "value"), "hellaswag.value"),
    ("iter1/harness/eval.json", ("set", "prompts"), "set.prompts"),
    ("iter1/harness/eval.json", ("policy", "sha256"), "made of another policy"),
    ("report/summary.json", ("recipes", 0, "policies", 1, "sampled", "vs_start", "win_rate", "value"), "win_rate.value"),
    ("report/summary.json", ("recipes", 0, "policies", 2, "greedy", "reward", "low"), "reward.low"),
    ("report/summary.json", ("recipes", 0, "pairs", 0, "pairs"), "pairs"),
    ("report/summary.json", ("recipes", 0, "training", 0, "last", "loss"), "loss"),
    ("report/summary.json", ("recipes", 0, "stages", 0, "seconds"), "seconds"),
    ("report/summary.json", ("conclusions", 0), "conclusions"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "words"), DEEP)
def test_a_number_that_does_not_follow_is_refused_though_the_manifest_was_made_anew(
    made: Path, ledger: Ledger, name: str, path: Way, words: str
) -> None:
    forged = rehashed(altered(ledger, name, path, another), name)
    found = faults(forged)
    assert found and any(re.search(words, fault) for fault in found), found
    assert not any("its manifest says" in fault for fault in found)


def test_verdicts_cannot_be_left_out(made: Path, ledger: Ledger) -> None:
    name = "iter1/quiz/eval.json"
    content = opened(name, ledger.files[name])
    del content["rows"][0]["verdicts"]["single"]
    forged = rehashed(Ledger(ledger.run, {**ledger.files, name: closed(name, content)}), name)
    assert any("single has verdicts on 7 of 8 prompts" in fault for fault in faults(forged))
    for row in content["rows"]:
        row["verdicts"].pop("single", None)
    forged = rehashed(Ledger(ledger.run, {**ledger.files, name: closed(name, content)}), name)
    assert any("no verdicts that it follows from" in fault for fault in faults(forged))


def test_an_altered_setting_is_refused_though_settings_file_key_and_manifest_were_made_anew(made: Path, ledger: Ledger) -> None:
    files = dict(ledger.files)
    settings_file = yaml.safe_load(files["iter1/train.yaml"])
    settings_file["train"]["beta"] = 0.5
    files["iter1/train.yaml"] = closed("a.yaml", settings_file)
    manifest = json.loads(files["iter1/policy/manifest.json"])
    manifest["settings"] = settings_file
    kept = {key: value for key, value in settings_file.items() if key not in ("recipe", "overrides")}
    determined = {"settings": kept, "inputs": manifest["inputs"], "external": manifest["external"]}
    manifest["key"] = hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()
    files["iter1/policy/manifest.json"] = json.dumps(manifest).encode()
    (found,) = faults(Ledger(ledger.run, files))
    assert found == "iter1/policy: train.beta is 0.5, and recipe mine-selm has 0.2"


def test_a_missing_stage_a_stage_too_many_and_another_name_are_refused(made: Path, ledger: Ledger) -> None:
    without = {name: content for name, content in ledger.files.items() if not name.startswith("check")}
    assert "check.json: the recipe has it, and the ledger has no manifest of it" in faults(Ledger(ledger.run, without))
    more = {name.replace("iter1/quiz", "iter1/exam"): content for name, content in ledger.files.items()}
    found = faults(Ledger(ledger.run, more))
    assert "iter1/exam/eval.json: is inside, and no stage of recipe mine-selm makes it" in found
    assert any("is of run tiny-selm" in fault for fault in faults(Ledger("tiny-selm", ledger.files)))


def test_a_run_cannot_pass_for_the_recipe_under_overrides_that_cannot_be_read(made: Path, ledger: Ledger) -> None:
    files = {}
    for name, content in ledger.files.items():
        value = opened(name, content)
        for part in [value, value.get("settings", {})] if isinstance(value, dict) else []:
            if "overrides" in part:
                part["overrides"] = ["nonsense"]
        files[name] = closed(name, value) if name.endswith((".yaml", "manifest.json")) else content
    assert any("overrides it is said to be" in fault for fault in faults(Ledger(ledger.run, files)))


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b'{"decodings": 3}', b'{"inputs": 1, "settings": []}'])
@pytest.mark.parametrize("name", ["iter1/eval.json", "iter1/quiz/eval.json", "report/summary.json", "iter0/policy/manifest.json"])
def test_content_that_is_no_runs_is_a_fault_and_no_traceback(made: Path, ledger: Ledger, name: str, content: bytes) -> None:
    forged = Ledger(ledger.run, {**ledger.files, name: content})
    found = faults(forged if name.endswith("manifest.json") else rehashed(forged, name))
    assert found and not any("/ledger-" in fault for fault in found)


def test_a_run_that_is_changed_unfinished_or_tells_its_folder_is_not_packed(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / "mine-selm"
    shutil.copytree(made, copy)
    with pytest.raises(UserError, match="is no folder of a run"):
        packed(tmp_path / "nowhere")
    rows = copy / "iter1" / "pairs.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("nothing", "anything"))
    with pytest.raises(UserError, match=r"pairs\.jsonl was changed after stage 'select' made it"):
        packed(copy)
    shutil.rmtree(copy / "report")
    with pytest.raises(UserError, match="has no report, so it is not finished; make mine-selm-report first"):
        packed(copy)


def test_what_a_folder_of_ledgers_measured_names_judge_and_hardware(made: Path, ledger: Ledger, tmp_path: Path) -> None:
    assert ledger_measurements(tmp_path / "none") == {}
    (tmp_path / "b.ledger.zip").write_bytes(archive_bytes(ledger))
    target = add_to_ledger(tmp_path / "b.ledger.zip", tmp_path / "ledger")
    found = ledger_measurements(tmp_path / "ledger")
    assert set(found) == set(measurements_of(ledger, "b"))
    one = found["mine-selm", "iter1", "quiz", "single"]
    stated = opened("x.json", ledger.files["iter1/quiz/eval.json"])["measures"]["single"]
    assert (*one[:3], one.judge.model, one.file) == (stated["value"], stated["standard_error"], 8, "a-judge", "b.ledger.zip")
    assert "cores" in one.hardware
    assert ("mine-selm", "iter1", "quiz", "lc_win_rate") not in found
    assert add_to_ledger(tmp_path / "b.ledger.zip", tmp_path / "ledger") == target
    (tmp_path / "b.ledger.zip").write_bytes(archive_bytes(altered(ledger, "check.json", ("lines", 0), "x")))
    with pytest.raises(UserError, match="is there already, with another content"):
        add_to_ledger(tmp_path / "b.ledger.zip", tmp_path / "ledger")
    target.write_bytes(archive_bytes(altered(ledger, "iter1/quiz/eval.json", ("measures", "single", "value"), 9.9)))
    with pytest.raises(UserError, match=r"b\.ledger\.zip: .*single"):
        ledger_measurements(tmp_path / "ledger")


def script(name: str) -> Any:
    """The main of a script."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_the_scripts_pack_the_same_bytes_twice_verify_and_add(
    made: Path, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.ledger.zip"
    script("pack_run")([str(made), "--out", str(out)])
    assert out.read_bytes() == archive_bytes(ledger)
    assert f"packed: {out} (" in capsys.readouterr().out
    script("verify_ledger")([str(out), "--add", "--ledger", str(tmp_path / "ledger")])
    lines = capsys.readouterr().out.splitlines()
    groups = ("archive", "manifests", "chain", "settings", "evaluations", "summary", "sets")
    assert [line.split()[:2] for line in lines[:7]] == [[group, "holds"] for group in groups]
    assert any(line.startswith("measured     iter1 quiz single: ") and "judged by a-judge, on " in line for line in lines)
    assert lines[-2].startswith("verdict: mine-selm is one whole")
    assert lines[-1] == f"added: {tmp_path / 'ledger' / 'a.ledger.zip'}"
    with pytest.raises(UserError, match=r"the name of a ledger ends with \.ledger\.zip"):
        script("pack_run")([str(made), "--out", str(tmp_path / "a.zip")])


def test_a_report_that_is_older_than_a_stage_made_again_is_named_with_what_to_do(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes in other seconds make nothing stale, and the report still says the former ones."""
    main = script("pack_run")
    stale = [Group("manifests", "", []), Group("summary", "", ["stages[5].seconds is 2, and it was 3"])]
    monkeypatch.setitem(main.__globals__, "content_groups", lambda ledger: stale)
    with pytest.raises(UserError, match=r"older than what it reports \(stages\[5\].*\); delete that folder, and repeat"):
        main([str(made), "--out", str(tmp_path / "a.ledger.zip")])
    assert not (tmp_path / "a.ledger.zip").exists()


def test_the_script_refuses_an_altered_answer_in_lines_and_adds_nothing(made: Path, ledger: Ledger, tmp_path: Path) -> None:
    out = tmp_path / "a.ledger.zip"
    out.write_bytes(archive_bytes(altered(ledger, "iter1/eval.json", ("decodings", "greedy", "rows", 0, "text"), another)))
    words = [ROOT / "scripts/verify_ledger.py", out, "--add", "--ledger", tmp_path / "ledger"]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out}: manifests: iter1/eval.json: eval.json is not what its manifest says")
    assert "manifests    DIFFERS" in done.stdout and "verdict" not in done.stdout and not (tmp_path / "ledger").exists()
