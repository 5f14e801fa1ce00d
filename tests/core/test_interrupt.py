"""Ctrl-C while a script imports its libraries: one line and 130, in our own scripts and nowhere else."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from handbook_ext.core import interrupt

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "datasets", "trl"}
# An import hook that sends the interrupt when a heavy library is asked for, wherever in the script that is.
HOOK = """
import os, runpy, signal, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000): pass
sys.meta_path.insert(0, Hook())
sys.argv = [{script!r}, "none"]
sys.path[0] = os.path.dirname({script!r})
runpy.run_path({script!r}, run_name="__main__")
"""


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python in the foreground: what a shell starts in the background, such as these tests, ignores interrupts."""
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def interrupted(script: Path, library: str) -> subprocess.CompletedProcess[str]:
    """A script that is interrupted when it imports a library."""
    code = HOOK.format(script=str(script), library=library)
    return run("-c", code, cwd=ROOT)


@pytest.mark.parametrize(("name", "library"), [("train_policy", "torch"), ("plan_goals", "pydantic"), ("write_report", "numpy")])
def test_an_interrupt_during_imports_is_one_line(name: str, library: str) -> None:
    done = interrupted(ROOT / "scripts" / f"{name}.py", library)
    assert (done.returncode, done.stderr) == (130, f"error: {interrupt.INTERRUPTED}\n")


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_that_imports_torch_first_is_prepared_for_an_interrupt(script: Path) -> None:
    imports = re.findall(r"^(?:import|from) ([\w.]+)", script.read_text(), re.MULTILINE)
    ours = next(place for place, name in enumerate(imports) if name.startswith("handbook_ext"))
    assert not {name.partition(".")[0] for name in imports[:ours]} & HEAVY


def test_another_programs_interrupts_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import signal, handbook_ext\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n")
    assert run(str(path)).returncode == 0
    module = "import sys; sys.argv = ['-m']; import signal, handbook_ext; print(repr(signal.getsignal(signal.SIGINT)))"
    ignored = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {module}"
    for code, said in ((module, "_end"), (ignored, "SIG_IGN")):
        assert said in run("-c", code).stdout


def test_a_script_that_has_imported_raises_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["-m"])
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt.quiet_while_importing()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        interrupt.importing_is_over()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
