"""The whole plan in words: stages, totals, what was changed and why, what nothing is known of, and the command. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from handbook_ext.planning.calibration import damage
from handbook_ext.planning.choices import Change, Choice, gigabytes
from handbook_ext.planning.figures import Estimate, Setting, clock
from handbook_ext.planning.first_lines import planned_lines
from handbook_ext.planning.memory_model import Memory
from handbook_ext.planning.request import Request
from handbook_ext.recipes.launch_checks import crowded
from handbook_ext.recipes.overrides import inline

WIDTH = 1000  # Wider than any line: the terminal wraps, and nothing is cut.
LETTERS = {
    "weights": "w", "gradients": "g", "optimizer": "o", "communication and copies": "c", "activations": "a", "logits": "l",
    "cache": "k",
}  # fmt: skip
LEGEND = "w weights, g gradients, o optimizer, c communication and copies, a activations, l logits, k keys and values"


def plan_text(request: Request, setting: Setting, choice: Choice, own: Setting) -> str:
    """Returns the plan of a run that fits; `own` is the recipe's own launch."""
    machine = setting.machine
    lines = [
        f"{setting.run.name} on {machine.words}, launch {setting.run.launch.name}",
        *planned_lines(setting, choice.estimates),
        _table(setting, choice.estimates),
        *_totals(setting, choice),
        f"memory is the most that a stage holds, in GB of 10^9 bytes: {LEGEND}",
        *_bases(setting),
        *(f"note: {line}" for line in _notes(setting, choice)),
        *(_changed(each) for each in launch_changes(setting, choice, own)),
        *(_changed(each) for each in choice.changes),
    ]
    if not choice.changes and setting.run.launch.name == own.run.settings.launch:
        lines.append("changed: nothing")
    return "\n".join([*lines, f"run: {command(request, setting, choice, own)}"]) + "\n"


def launch_changes(setting: Setting, choice: Choice, own: Setting) -> list[Change]:
    """Returns the change of the launch, where another one than the recipe's was chosen."""
    before = own.run.settings.launch
    if setting.run.launch.name == before:
        return []
    if own.sharding.name == setting.sharding.name:
        return [
            Change("launch", before, setting.sharding.name, "as asked" if setting.sharding.on_cpu else "the plan is for GPUs")
        ]
    return [Change("launch", before, setting.sharding.name, choice.launch_why)]


def command(request: Request, setting: Setting, choice: Choice, own: Setting) -> str:
    """Returns the make command that would run the plan."""
    launch = setting.run.launch
    changes: dict[str, str] = {"VRAM": "", "RAM": ""}
    if launch.name != own.run.settings.launch:
        changes["LAUNCH"] = launch.name
    if launch.name != "cpu" and (request.gpus or changes.get("LAUNCH")):
        changes["GPUS"] = str(launch.processes)
    if choice.changes:
        told = " ".join(f"{each.key}={inline(each.after)}" for each in choice.changes)
        changes["SET"] = f"{request.set} {told}".strip()
    return f"make {request.run}{request.words(**changes)}"


def _table(setting: Setting, estimates: Sequence[Estimate]) -> str:
    """Returns the stages as a table."""
    gpu = setting.machine.on_gpu
    table = Table(box=None, pad_edge=False, header_style="", show_header=True)
    table.add_column("makes", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for name in ("steps", "micro x acc.", "tokens", *(["GPU memory"] if gpu else []), "main memory", "time", "left on disk"):
        table.add_column(name, justify="right", no_wrap=True)
    if gpu:
        table.add_column("GPU-hours", justify="right", no_wrap=True)
    table.add_column("of GPU memory" if gpu else "of main memory", no_wrap=True)
    for each in estimates:
        batch = "" if each.micro_batch is None else str(each.micro_batch)
        batch += "" if each.accumulation is None else f" x {each.accumulation}"
        held = main_bytes(setting, each)
        hours = each.seconds * setting.sharding.processes / 3600 if each.on_device else 0.0
        table.add_row(
            each.artifact, each.work, "" if each.steps is None else f"{each.steps:,}", batch,
            f"{each.tokens:,.0f}" if each.tokens else "",
            *([f"{each.memory.on_device / 1e9:.1f}" if each.memory.on_device else ""] if gpu else []),
            f"{held / 1e9:.2f}" if held < 1e10 else f"{held / 1e9:.0f}", clock(each.seconds),
            gigabytes(each.kept) if each.kept else "",
            *([f"{hours:.1f}" if hours else ""] if gpu else []), _parts(each.memory, gpu=gpu),
        )  # fmt: skip
    out = StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


def main_bytes(setting: Setting, each: Estimate) -> float:
    """Returns the bytes of main memory that a stage holds: on a CPU all of it."""
    if setting.machine.on_gpu:
        return each.memory.in_main
    return each.memory.in_main + each.memory.on_device * (setting.sharding.processes if each.on_device else 1)


def _parts(memory: Memory, *, gpu: bool) -> str:
    """Returns the parts of a device's memory, by letter, those that show."""
    unit = 1e9 if gpu or memory.on_device > 1e9 else 1e6
    told = " ".join(f"{LETTERS[name]}{value / unit:.1f}" for name, value in memory.device.items() if value >= 0.05 * unit)
    return told + (" MB" if told and unit < 1e9 else "")


def _totals(setting: Setting, choice: Choice) -> list[str]:
    """Returns the totals of a run."""
    estimates, processes = choice.estimates, setting.sharding.processes
    on_device = sum(each.seconds for each in estimates if each.on_device)
    disk = sum(each.kept for each in estimates)
    most = max(estimates, key=lambda each: each.transient)
    line = f"total: {clock(choice.seconds)}, one stage after the other; "
    if setting.machine.on_gpu:
        line += f"{on_device * processes / 3600:,.1f} GPU-hours; "
    line += f"disk {gigabytes(disk)} of policies"
    if most.transient > 0:
        return [f"{line} and up to {gigabytes(most.transient)} of checkpoints to resume from"]
    return [f"{line}; checkpoints to resume from hold adapters alone, which take little"]


def _bases(setting: Setting) -> list[str]:
    """Returns how each kind of figure is known."""
    amounts, rates = setting.amounts, setting.machine.rates
    return [
        f"basis: model {setting.shape.weights:,} weights, {setting.shape.basis}",
        f"basis: rows {amounts.rows_basis}",
        f"basis: lengths {amounts.lengths_basis}; samples taken to be as long as chosen completions",
        f"basis: time {rates.basis}",
        "basis: memory by the model of src/handbook_ext/planning/README.md, checked on a CPU, not on a GPU",
    ]


def _notes(setting: Setting, choice: Choice) -> list[str]:
    """Returns what the plan could not know."""
    found = [*damage(setting.folder.parent), *crowded(setting.run.launch)]
    most = max(choice.estimates, key=lambda each: each.memory.in_main)
    if setting.machine.on_gpu and setting.machine.main is None:
        found.append(f"{most.artifact} needs {gigabytes(most.memory.in_main)} of main memory; RAM= has it checked")
    if setting.run.evaluator.ranker == "judge" or any(rank.ranker == "judge" for rank in setting.run.rankers):
        found.append("the time of a judge behind an endpoint is not counted")
    return found


def _changed(each: Change) -> str:
    """Returns a change in words."""
    return f"changed: {each.key}: {inline(each.before)} -> {inline(each.after)} ({each.why})"
