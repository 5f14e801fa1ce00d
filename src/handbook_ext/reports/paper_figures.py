"""The figures of the two papers by name, and the files of one: pictures, their numbers, and a page with the caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.yaml_tree import nearest
from handbook_ext.reports import figures_selm as selm
from handbook_ext.reports import figures_selm_matrix as selm_matrix
from handbook_ext.reports import figures_sera as sera
from handbook_ext.reports import figures_sera_sweeps as sweeps
from handbook_ext.reports.figure_layout import draw
from handbook_ext.reports.figure_parts import PAPER, Picture, to_csv
from handbook_ext.reports.figure_sources import Sources
from handbook_ext.reports.figure_style import pictures


@dataclass(frozen=True)
class PaperFigure:
    """A figure: what it shows, what it needs, and what makes its picture of the runs at hand."""

    shows: str
    needs: str
    build: Callable[[Sources], Picture]


EVAL, PAIRS = "<policy>/eval.json", "iter<N>/pairs.jsonl"
FIGURES = {
    "selm2": PaperFigure("pairwise LC win rates", f"{EVAL} of the rows of selm1; or make matrix", selm_matrix.figure2),
    "selm3": PaperFigure("alpha: score, rewards of greedy answers", f"{EVAL} of all iterations of selm-alpha", selm.figure3),
    "selm4": PaperFigure("implicit rewards of held-out answers", f"{EVAL} of SELM iter 1 and DPO iter 1 of selm1", selm.figure4),
    "selm5": PaperFigure("implicit rewards of own samples", f"{EVAL} of SELM iter 2 and DPO iter 2 of selm1", selm.figure5),
    "selm6": PaperFigure(
        "score against training data", f"{EVAL}, {PAIRS} of all iterations of selm-ablations, selm-offline", selm.figure6
    ),
    "sera2": PaperFigure("win rate by selector", f"{EVAL} of sera-selectors, sera-selectors-objectives", sera.figure2),
    "sera3": PaperFigure("implicit reward, score and length", f"{EVAL} of sera-selectors", sera.figure3),
    "sera4": PaperFigure("flipped labels (tables 7 and 8)", f"{EVAL} of sera-noise20, sera-noise40", sera.figure4),
    "sera5a": PaperFigure("K, offline pairs kept", f"{EVAL} of all iterations of sera-keep, sera-selection", sweeps.figure5a),
    "sera5b": PaperFigure("K~, own pairs added", f"{EVAL} of all iterations of sera-bootstrap", sweeps.figure5b),
    "sera6a": PaperFigure("gamma: win rate", f"{EVAL} of sera-gamma", sweeps.figure6a),
    "sera6b": PaperFigure("gamma: agreement", f"{PAIRS} of sera-gamma", sweeps.figure6b),
    "sera6c": PaperFigure("agreement between models", f"{PAIRS} of sera-models, or SeRA-DPO of several MODELs", sweeps.figure6c),
    "sera6d": PaperFigure("agreement between objectives", f"{PAIRS} of sera-objectives", sweeps.figure6d),
    "sera11": PaperFigure("implicit reward margin and score gap", f"{EVAL} of sera-selectors", sera.figure11),
}  # fmt: skip


def listing() -> str:
    """Returns a line for each figure: what it shows and what it needs, which names tables of recipes/tables."""
    names, shows = max(map(len, FIGURES)), max(len(each.shows) for each in FIGURES.values())
    return "".join(f"{name:{names}}  {each.shows:{shows}}  needs {each.needs}\n" for name, each in FIGURES.items())


def render_paper_figure(name: str, sources: Sources) -> dict[str, bytes]:
    """Returns the files of a figure: PNG for light and dark pages, SVG, CSV with the same numbers, Markdown with the caption.

    What is missing is left in `sources`. Raises UserError for a name that there is not, and where there is nothing to draw: the
    message says what is missing and which goals make it.
    """
    if name not in FIGURES:
        raise UserError(f"no figure is called '{name}'{nearest(name, FIGURES)}; there are: {', '.join(FIGURES)}")
    picture = FIGURES[name].build(sources)
    if all(panel.empty for panel in picture.panels):
        raise UserError(f"{name}: there is nothing to draw; missing: {sources.told()}")
    stem = f"{name}-{'-'.join(sources.models)}"
    files = pictures(stem, partial(draw, picture), vector=True)
    return files | {f"{stem}.csv": to_csv(picture).encode(), f"{stem}.md": page(stem, picture, sources).encode()}


def _told(picture: Picture) -> list[str]:
    """Returns the lines of a page that say in words what its panels conclude; none where no panel concludes anything."""
    lines = [
        f"- {panel.title}: {'; '.join([*(fact.words for fact in panel.facts), *panel.notes])}."
        for panel in picture.panels
        if panel.kind == "sorted" and panel.facts
    ]
    return [*lines, ""] if lines else []


def page(stem: str, picture: Picture, sources: Sources) -> str:
    """Returns the Markdown of a figure: its picture for light and dark pages, its caption, its seeds, what is missing."""
    seeds = sources.seeds_told() or "Ours: not run."
    printed = any(one.whose == PAPER for panel in picture.panels for one in panel.series)
    lines = [
        f"# {picture.title}", "",
        f'<picture><source srcset="{stem}-dark.png" media="(prefers-color-scheme: dark)">'
        f'<img src="{stem}.png" alt="{picture.title}"></picture>', "",
        " ".join(filter(None, [picture.caption.strip(), seeds, "" if printed else "The paper prints no numbers of it."])), "",
        *_told(picture),
        f"Its numbers: [{stem}.csv]({stem}.csv); [{stem}.svg]({stem}.svg).", "",
    ]  # fmt: skip
    return "\n".join([*lines, f"Not drawn for want of: {sources.told()}.", ""] if sources.missing else lines)
