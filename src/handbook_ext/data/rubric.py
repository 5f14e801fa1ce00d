"""The rubric by which a policy judges an answer with 0 to 5 points: its wording, and how a judgement is read."""

from __future__ import annotations

import re
from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from handbook_ext.core.errors import UserError

MOST_POINTS = 5
# Additive as in Self-Rewarding Language Models (Yuan et al. 2024), in words of our own.
DEFAULT_RUBRIC = """Rate how well the response below answers the user. Start from 0; add one point for each statement that holds:
- Relevance: the response is about what the user asked and gives at least some of the information wanted.
- Substance: it settles a substantial part of the request, even if something is still open.
- Usefulness: it settles the core of the request in a way that the user can put to use.
- Clarity: it is well ordered, easy to follow, free of digressions, and written from an assistant's point of view.
- Expertise: it is accurate and insightful beyond what is obvious, as an expert in the field would write it.

<user>
{{ prompt }}
</user>

<response>
{{ response }}
</response>

First justify the points in at most 100 words. Then end with this line, <points> being the sum, from 0 to 5:
Score: <points>
"""
# Short, for the tiny world's policy: it learns from judge rows what is asked.
TINY_RUBRIC = "judge {{ prompt }} answer {{ response }}"

# The sign and what follows the number are read too, so that -1, 4/10 and 45 are not taken for 1, 4 and 4.
_SCORE = re.compile(
    r"(?<![^\W_])score[\s*_`]*[:=][\s*_`]*(?P<points>[-+]?[0-9]+(?:[.,][0-9]+)?)[*_`]*(?:\s*(?:/|out\s+of)\s*(?P<most>[0-9]+))?",
    re.IGNORECASE,
)


def render(prompt: str, response: str, rubric: str | None = None) -> str:
    """Returns the question to the judge; `rubric` is Jinja text with {{ prompt }} and {{ response }}, None is our own.

    Raises UserError for a rubric that is no valid Jinja, has other variables than these two, or cannot be filled in.
    """
    return filled(DEFAULT_RUBRIC if rubric is None else rubric, prompt=prompt, response=response)


def filled(question: str, **texts: str) -> str:
    """Returns a question in Jinja with its variables filled in, all that are given; raises UserError as `render` does."""
    template = _template(question, tuple(texts))
    try:
        return template.render(texts)
    except TemplateError as error:
        raise UserError(f"rank.rubric: cannot be filled in ({error}); {' and '.join(texts)} are plain texts") from None


@lru_cache(maxsize=8)
def _template(rubric: str, variables: tuple[str, ...]) -> Template:
    """Returns the compiled rubric, checked."""
    # In a sandbox, since recipes are passed on; without HTML escapes, since a language model reads the text.
    environment = ImmutableSandboxedEnvironment(autoescape=False, undefined=StrictUndefined)
    try:
        used = meta.find_undeclared_variables(environment.parse(rubric))
        template = environment.from_string(rubric)
    except TemplateError as error:
        raise UserError(f"rank.rubric: not valid Jinja ({error}); correct it, or remove rank.rubric to use our own") from None
    if used != set(variables):
        has = ", ".join(sorted(used)) or "none"
        every = "both" if len(variables) == 2 else "all"
        raise UserError(
            f"rank.rubric: a rubric uses the variables {' and '.join(variables)}, {every} and no other; this one has: {has}"
        )
    return template


def parse_points(text: str) -> float | None:
    """Returns the points, 0 to 5, that the last "Score: x" of a judgement gives; None where there is none.

    "Score: 4/5" and "**Score:** 4" are read; another scale or a number beyond 0 to 5 is no score.
    """
    found = list(_SCORE.finditer(text))
    if not found or found[-1]["most"] not in (None, str(MOST_POINTS)):
        return None
    points = float(found[-1]["points"].replace(",", "."))
    return points if 0 <= points <= MOST_POINTS else None
