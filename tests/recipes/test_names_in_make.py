"""Names as the real make meets them: on the command line, in the environment, in recipes, in folders of earlier runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recipes.hostile_names import CODE, FILE_NAMES, examples, words
from tests.workspace import Workspace

ROWS = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
STAGES = ["prepare_data", "check_run", "train_sft", "train_ranker", "evaluate_policy", "select_pairs"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A folder like a clone."""
    return Workspace(tmp_path_factory.mktemp("names") / "clone")


def make(workspace: Workspace, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs make; fails where a file was made by a name, or where what went wrong is not told in one line."""
    done = subprocess.run(
        ["make", *argv], cwd=workspace.folder, capture_output=True, errors="surrogateescape", timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert not list(workspace.folder.parent.rglob("PWND"))
    assert "Traceback" not in done.stderr
    if done.returncode:
        errors = [line for line in done.stderr.split("\n") if line.startswith("error: ")]
        rest = [line for line in done.stderr.split("\n") if line and not line.startswith(("error: ", "note: "))]
        own = [re.sub(r"^Makefile:\d+: \*\*\* nothing was started\.  Stop\.$", "", line) for line in rest]
        refused_by_make = re.match(
            r"make: \*\*\* .*(No rule to make target|empty string invalid|File name too long)", done.stderr, re.DOTALL
        )
        assert refused_by_make or (len(errors) == 1 and not any(own)), done.stderr
    return done


def stages(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The scripts that make would run."""
    assert done.returncode == 0, done.stderr
    return re.findall(r"scripts/(\w+)\.py", done.stdout)


def a_data_file_in_make(workspace: Workspace, name: str, in_folder: bool) -> None:
    folder = Path(name) if in_folder else Path()
    (workspace.folder / folder).mkdir(exist_ok=True)
    train = "train.jsonl" if in_folder else f"{name}.jsonl"
    for file in (train, "test.jsonl"):
        (workspace.folder / folder / file).write_text(ROWS)
    if in_folder:
        done = make(workspace, "-n", "mine-micro", f"DATA={name}")
    else:
        quoted = "".join(f"\\U{ord(letter):08x}" for letter in train)
        workspace.write(f'base: micro.yaml\ndata: {{train: "{quoted}", test: test.jsonl}}\n', "own")
        done = make(workspace, "-n", "mine-own")
    if done.returncode:
        assert "UTF-8" in done.stderr or name in ("train", "test")
    else:
        assert stages(done)[:6] == STAGES


def a_recipe_in_make(workspace: Workspace, name: str, goal: str) -> None:
    path = workspace.folder / "recipes" / "mine" / f"{name}.yaml"
    before = path.read_text() if path.exists() else None
    path.write_text("base: micro.yaml\n" if name != "micro" else str(before))
    try:
        done = make(workspace, "-n", "--", f"mine-{name}" if goal == "it" else goal)
        if goal == "help":
            assert done.returncode == 0
    finally:
        path.unlink() if before is None else path.write_text(before)


def a_variable_in_make(workspace: Workspace, name: str, value: str, goal: str, exported: bool) -> None:
    if exported:
        done = make(workspace, "-n", goal, **{name: value})
    else:
        done = make(workspace, "-n", goal, f"{name}={value}")
        assert done.returncode or name not in ("FOO", "SHELL", "PYTHON", "MAKECMDGOALS", "GIVEN", "MAKEFILE_LIST")
    assert done.returncode or goal in ("help", "tiny-selm-why") or "scripts/" in done.stdout


def a_goal_in_make(workspace: Workspace, goal: str) -> None:
    done = make(workspace, "-n", "--", goal)
    assert done.returncode or goal == "tiny-selm" or not set(goal) & set(" $`;&|<>\"'\\#%*?[]{}()")


# The makefile's own variables are among them: nothing that stands there can be replaced from the command line. What make itself
# expands before it reads any makefile, the name of a variable and a value behind := or !=, no makefile can refuse.
VARIABLES = st.sampled_from([
    "RUNS", "SET", "DATA", "LAUNCH", "GPUS", "CLUSTER", "SEEDS", "UNTIL", "BESIDE", "JOBS", "THREADS", "ONLY", "T", "FOO",
    "SHELL", "PYTHON", "WARM", "SUBMIT", "said", "ACCELERATE", "MAKECMDGOALS", "GOALS", "GIVEN", "VARIABLES", "PROJECT",
    "UNPLANNED", "words", "quoted", "PLAN", "MAKEFILE_LIST",
])  # fmt: skip
GOAL = words().filter(lambda goal: "=" not in goal and len(os.fsencode(goal)) < 255)
REAL_GOALS = st.sampled_from(["help", "bench", "tiny-selm", "tiny-selm-seeds", "table-sera1", "tiny-selm-why", "paper-table"])
TEXT = words().filter(lambda value: "\0" not in value)
CASES = {
    "data": (a_data_file_in_make, {"name": FILE_NAMES, "in_folder": st.booleans()}),
    "recipe": (a_recipe_in_make, {"name": FILE_NAMES, "goal": st.sampled_from(["it", "it", "help"])}),
    "variable": (a_variable_in_make, {"name": VARIABLES, "value": TEXT, "goal": REAL_GOALS, "exported": st.just(False)}),
    "environment": (
        a_variable_in_make,
        {"name": st.sampled_from(["RUNS", "SET", "DATA", "SEEDS", "JOBS", "THREADS", "FORMAT"]), "value": TEXT,
         "goal": REAL_GOALS, "exported": st.just(True)},
    ),
    "goal": (a_goal_in_make, {"goal": GOAL}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CODE, "a b", "a$b", "$", "a#b", "a:b", "a\nb", "a\\", "a%b"])
def test_a_data_files_name_runs_nothing(workspace: Workspace, name: str) -> None:
    a_data_file_in_make(workspace, name, in_folder=False)
    assert "prepare_data" in stages(make(workspace, "-n", "mine-own"))


@pytest.mark.parametrize("kind", list(CASES))
def test_some_names_in_make(workspace: Workspace, kind: str) -> None:
    check, drawn = CASES[kind]
    examples(12)(given(**drawn)(lambda **values: check(workspace, **values)))()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CASES))
def test_many_names_in_make(workspace: Workspace, kind: str) -> None:
    check, drawn = CASES[kind]
    examples(50)(given(**drawn)(lambda **values: check(workspace, **values)))()


@pytest.mark.parametrize("argv", [
    *[[f"{name}={code}", "help"] for name in ("FOO", "SEEDS", "PYTHON", "MAKECMDGOALS") for code in CODE[:2]],
    ["-n", "tiny-selm-seeds", "SEEDS=3;touch PWND"], ["-n", "tiny-selm-seeds", "SEEDS=0"], ["-n", "tiny-selm", "SEEDS=3"],
    *[["-n", "tiny-selm", f"RUNS={folder}"] for folder in ("a b", "a=b", "", "a:b", "-x", "./-x", "a\nb", "a%", "~")],
    ["-n", "tiny-selm", "SET=train.beta=`touch PWND`"], ["-n", "tiny-selm", "GPUS=2"], ["-n", "tiny-selm", "JOBS=\u0663"],
    ["-n", "tiny-selm", "LAUNCH=../cpu"], ["-n", "tiny-selm", "DATA=none/$(shell touch PWND)"], ["--", "-x=1", "help"],
])  # fmt: skip
def test_a_word_that_means_nothing_is_told_in_one_line(workspace: Workspace, argv: list[str]) -> None:
    assert make(workspace, *argv).returncode == 2
    assert not (workspace.folder / "runs" / ".goals" / "PWND").exists()


@pytest.mark.parametrize("name", ["RUNS", "THREADS", "JOBS", "SEEDS", "DATA", "SET"])
def test_the_environment_is_not_expanded(workspace: Workspace, name: str) -> None:
    for goal in ("help", "tiny-selm", "bench"):
        make(workspace, "-n", goal, **{name: "$(shell touch PWND)"})


@pytest.mark.parametrize("folder", ["a//b", "./c", "d/", "../e", ".", "ü+@,/f"])
def test_a_folder_is_found_however_it_is_spelt(workspace: Workspace, folder: str) -> None:
    done = make(workspace, "-n", "mine-micro", f"RUNS={folder}")
    assert stages(done) == stages(make(workspace, "-n", "mine-micro"))


@pytest.mark.parametrize(
    "text", ["$(shell touch PWND)\n", "all:\n\ttouch PWND\n", "a b : c\n\x00\xff", "runs/mine-micro/data/ro"]
)
def test_what_an_earlier_version_left_is_written_anew_before_make_reads_it(tmp_path: Path, text: str) -> None:
    workspace = Workspace(tmp_path / "clone")
    first = make(workspace, "-n", "mine-micro")
    before = {path: path.read_bytes() for path in (workspace.folder / "runs").rglob("*") if path.is_file()}
    assert {".mk", ".yaml"} <= {path.suffix for path in before}
    for path in before:
        path.write_bytes(text.encode("latin-1"))
    assert make(workspace, "-n", "mine-micro").stdout == first.stdout
    assert {path: path.read_bytes() for path in before} == before


def test_recipes_whose_names_are_commands_are_told_and_run_by_nobody(workspace: Workspace) -> None:
    odd = [workspace.folder / "recipes" / "mine" / f"{code}.yaml" for code in CODE]
    for path in odd:
        path.write_text("base: micro.yaml\n")
    try:
        assert "make list" in make(workspace, "help").stdout
        done = make(workspace, "list")
        assert done.returncode == 0
        for path in odd:
            assert path.name in done.stderr.replace("\\'", "'")
        assert stages(make(workspace, "-n", "mine-micro"))
    finally:
        for path in odd:
            path.unlink()


def test_no_command_inherits_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "clone")
    scripts, seen = workspace.folder / "scripts", tmp_path / "seen"
    real = scripts.readlink()
    scripts.unlink()
    scripts.mkdir()
    (scripts / "plan_goals.py").symlink_to(real / "plan_goals.py")
    (scripts / "prepare_data.py").write_text(
        f"import json, os, sys\nopen({str(seen)!r}, 'w').write(json.dumps(sorted(os.environ)))\nsys.exit(3)\n"
    )
    monkeypatch.setenv("HANDBOOK_WARM", "0")
    workspace.make("mine-micro", 'SET=report.title="$(shell touch PWND)"', "JOBS=1")
    assert not {"SET", "JOBS", "RUNS"} & set(json.loads(seen.read_text()))
    assert not list(tmp_path.rglob("PWND"))


def test_make_knows_every_variable_of_its_makefiles(workspace: Workspace) -> None:
    for goal in ("mine-micro", "tiny-selm", "tiny-selm-seeds", "table-sera1", "help", "bench"):
        done = workspace.make("--warn-undefined-variables", "-n", goal)
        assert done.returncode == 0
        assert "undefined variable" not in done.stderr
