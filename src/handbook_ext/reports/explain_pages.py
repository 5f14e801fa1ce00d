"""The story of a training pair on a terminal: rich text there, plain lines where it is piped."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from handbook_ext.reports.evaluations import Json

# A policy may sample what a terminal takes for a command: it is shown as what it is.
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}
NOTHING = "-"
ROLES = {"chosen": "green", "rejected": "red", "explored": "cyan"}


def print_story(story: Json, console: Console) -> None:
    """Prints what `explain_pair` returned: the prompt, then the iterations that read it, then those that did not."""
    swapped = "; label noise swapped its chosen and rejected" if story["swapped"] else ""
    _line(console, f"prompt {story['prompt_id']} of {story['run']}", "bold")
    _line(console, f"{story['source'] or 'data'}{swapped}", "dim" if not swapped else "yellow")
    for message in story["prompt"]:
        _text(console, f"{message['role']}: {message['content']}")
    for each in story["iterations"]:
        _iteration(each, console)
    for line in story["elsewhere"]:
        _line(console, line, "dim")


def _iteration(story: Json, console: Console) -> None:
    """Prints one iteration: its candidates, their texts, their log-probs, and what became of them."""
    console.print()
    _line(console, f"{story['iteration']}: starts from {story['starts_from']}, select.rule {story['rule']}", "bold")
    for note in story["notes"]:
        _line(console, note, "yellow" if note.startswith("note") else "dim")
    console.print(_candidates(story))
    for each in story["candidates"]:
        _line(console, f"{each['label']}{_roles_in_words(each)}:", ROLES.get(next(iter(each["roles"]), ""), ""))
        _text(console, each["text"] or "(empty)")
    if story["log_probs"]:
        console.print(_log_probs(story))
    if story["terms"]:
        console.print(_terms(story))
    for line in story["decision"]:
        _line(console, line, "bold")
    for line in story["kept"]:
        _line(console, f"kept: {line}", "bold green")
    if not story["kept"]:
        _line(console, "no pair of this prompt was kept, so nothing trained on it here", "bold red")
    for line in story["training"]:
        _line(console, line)


def _candidates(story: Json) -> Table:
    """Returns the table of candidates: who wrote each, its scores and rank, its tokens, its part in the pair."""
    ties = "" if story["ties"] is None else f"{story['ties']} candidates tie"
    ties += f", {story['disagreements']} comparisons disagree with their reverse" if story["disagreements"] else ""
    columns = ("completion", "score", "rank", "data's score", "tokens", "finish", "seed", "part in the pair")
    rows = [
        (
            each["label"],
            "no verdict" if each["failed"] else _number(each["score"]) + (" (text cut)" if each["truncated"] else ""),
            _number(each["rank"]), _number(each["data_score"]), _number(each["tokens"]), each["finish_reason"] or NOTHING,
            NOTHING if each["seed"] is None else str(each["seed"]), ", ".join(each["roles"]) or NOTHING,
        )
        for each in story["candidates"]
    ]  # fmt: skip
    return _table("candidates", columns, rows, ties)


def _log_probs(story: Json) -> Table:
    """Returns the table of the stored log-probs: a row for each completion and policy."""
    labels: dict[str, str] = {}
    for each in story["candidates"]:
        # Equal texts of a prompt share their log-prob, as they share their id.
        name = each["completion_id"]
        labels[name] = f"{labels[name]} = {each['label']}" if name in labels else each["label"]
    rows = [
        (labels[each["completion_id"]], each["policy"], f"{each['total']:.4f}", f"{each['total'] / each['tokens']:.4f}",
         str(each["tokens"]))
        for each in story["log_probs"]
    ]  # fmt: skip
    return _table("log-probs in the score store (nats)", ("completion", "under", "sum", "per token", "tokens"), rows)


def _terms(story: Json) -> Table:
    """Returns the table of implicit rewards: each completion's terms (SeRA, Eq. 7) and their mix."""
    rows = []
    for each in story["terms"]:
        parts = " + ".join(
            f"{part['weight']:g} x {part['value']:.4f} ({part['policy']}"
            + (f" against {part['reference']})" if part["reference"] else ")")
            for part in each["parts"]
        )
        rows.append((each["label"], parts, "not all scored" if each["value"] is None else f"{each['value']:.4f}"))
    return _table(f"implicit rewards that selection compares ({story['unit']})", ("completion", "terms", "reward"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """Returns a table without frames, whose cells are taken as they are; a column that says nothing is left out."""
    told = [index for index in range(len(columns)) if index == 0 or any(row[index] != NOTHING for row in rows)]
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left", box=box.SIMPLE_HEAD)
    for index in told:
        table.add_column(columns[index], overflow="fold")  # A narrow terminal wraps a seed, and does not cut it.
    for row in rows:
        # A Text, since a name may hold what rich takes for markup.
        table.add_row(*(Text(row[index]) for index in told))
    return table


def _roles_in_words(each: Json) -> str:
    """Returns a candidate's part in the pair, in brackets."""
    return f" ({', '.join(each['roles'])})" if each["roles"] else ""


def _number(value: float | None) -> str:
    """Returns a number in a few digits, a dash where there is none."""
    return NOTHING if value is None else f"{value:.4g}"


def _line(console: Console, text: str, style: str = "") -> None:
    """Prints a line, on a terminal in its style and wrapped, to a pipe as one line."""
    console.print(Text(text, style=style), soft_wrap=not console.is_terminal)


def _text(console: Console, text: str) -> None:
    """Prints what somebody wrote, indented, and as it is."""
    shown = text.translate(CONTROL)
    if console.is_terminal:
        console.print(Padding(Text(shown), (0, 0, 0, 4)))
        return
    for line in shown.splitlines():
        _line(console, f"    {line}")
