"""Names that make, a shell, YAML or a glob could misread, and a checker of makefiles that none of them reached."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.recipe_folder import ROOT

CODE = [
    "$(shell touch PWND)",
    "$$(touch PWND)",
    "$(touch PWND)",
    "`touch PWND`",
    ";touch PWND",
    "'; touch PWND; '",
    '"$(touch PWND)"',
]
ODD = [
    "%", "a:b", "a=b", "#a", "a b", " ", "\t", "a\nb", "a\n\ttouch PWND", "a\\", "-rf", "--help", "~", "~root", "*", "[ab]",
    "{a,b}", "a&b", "a|b", "<a>", "!", "^", "@a", "+a", "a,b", "...", ".hidden", "x-iter1", "x-seed3", "x-report", "x-why",
    "x-seeds", "iter1", "a://b", "a::b", "null", "1e5", "= ", "include", "ä", "s\u0301", "\u202eabc", "\u0639\u0631",
    "\u0661\u0662", "\U0001f600", "\u2028", "\x85", "\xa0", "\x7f", "\x1b[31m", "\ufeffa", "\udcff", "\udcc3a",
    "x" * 200, "x" * 300,
]  # fmt: skip
LETTERS = " \t\n$()`;&|<>'\"\\#%:=~*?[]{}!,+@^-._aZ0äß\u202e\u0639\u0661\U0001f600\x85\xa0\udcff"


def words(without: str = "") -> st.SearchStrategy[str]:
    """Any of the names above, alone or joined, without some characters."""
    odd = st.sampled_from([*CODE, *ODD])
    drawn = st.one_of(odd, st.text(LETTERS, min_size=1, max_size=12), st.tuples(odd, st.text(LETTERS, max_size=4)).map("".join))
    return drawn.map(lambda text: re.sub(f"[{re.escape(without)}]", "", text) if without else text).filter(bool)


FILE_NAMES = words(without="/").filter(lambda name: name not in (".", "..") and len(os.fsencode(name)) < 240)


def examples(count: int) -> settings:
    """Settings of a property test: the same cases on every machine, none kept on disk, no limit in time."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=checks)


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """Makes a new folder with a few recipes the current one; afterwards there is no file that a name could have made."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "work")
        shutil.copytree(ROOT / "recipes" / "accelerate", folder / "recipes" / "accelerate")
        for name in ("tiny", "mine", "tables"):
            (folder / "recipes" / name).mkdir()
        for name in ("base", "selm", "dpo"):
            shutil.copy(ROOT / "recipes" / "tiny" / f"{name}.yaml", folder / "recipes" / "tiny")
        with contextlib.chdir(folder):
            yield folder
        assert not list(Path(parent).rglob("PWND"))


def script(name: str, *argv: str) -> str:
    """Runs the main of a script here; returns its stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"](list(argv))
    return out.getvalue()


def planned(*goals: str, **variables: str) -> dict[Path, list[str]]:
    """Plans goals as make has it done; returns what each stage's first target needs, from makefiles that were found harmless."""
    said = [f"--variable={name}={value}" for name, value in variables.items()]
    out = script("plan_goals", *said, *(f"--given={name}" for name in variables), "--", *goals)
    assert out.endswith("\n")
    assert not set(out) & HARMFUL
    found: dict[Path, list[str]] = {}
    for path in out.split():
        text = Path(path).read_text(encoding="utf-8")
        found |= {Path(targets[0]): needed for targets, needed in harmless(text)}
    return found


# What make, bash or a terminal would not take for a letter of a name.
HARMFUL = set("$()`;&|<>'\"\\#%:=~*?[]{}!^\t\r\x0b\x0c\x00\x1b")
COMMANDS = {"$(PYTHON)", "$(WARM)", "$(ACCELERATE)", "@cat", "@$(PYTHON)"}
OPTIONS = {"--config_file", "--num_processes", "--beside", "--out", "--seeds", "--runs"}


def harmless(text: str) -> list[tuple[list[str], list[str]]]:
    """Returns targets and prerequisites of a makefile's rules; fails where a line is no plain rule, command or comment."""
    rules = []
    for line in text.replace(" \\\n    ", " ").split("\n"):
        if line in ("", ".NOTPARALLEL:", "MAKEFLAGS += -j$(JOBS)") or line.endswith(": export HANDBOOK_SHARE := 1"):
            _plain(line.removesuffix(": export HANDBOOK_SHARE := 1").split(" ")[0] if "HANDBOOK" in line else "a")
        elif line.startswith("#"):
            assert line.isprintable()
            assert not line.endswith("\\")
        elif line.startswith("\t"):
            command, *arguments = line[1:].split(" ")
            assert command in COMMANDS
            for word in arguments:
                _plain(word.removeprefix("--") if word in OPTIONS else word)
        else:
            head, colon, needed = line.partition(" &:" if " &:" in line else ":")
            assert colon, line
            targets, prerequisites = head.removesuffix(" ").split(" "), needed.removeprefix(" ").split(" ")
            prerequisites = [word for word in prerequisites if word != "|"]  # Of what lies behind it make minds no time.
            for word in [*targets, *filter(None, prerequisites)]:
                _plain(word)
            rules.append((targets, prerequisites))
    return rules


def _plain(word: str) -> None:
    """Fails where a word is not one of letters that make and a shell leave alone."""
    assert word
    assert not word.startswith("-"), word
    assert not set(word) & HARMFUL, word
    assert word.isprintable(), word
    assert " " not in word
