"""What SEEDS=auto adds seeds for: how narrow the intervals are to be, and how many seeds may be spent on it."""

from __future__ import annotations

from pydantic import Field, ValidationError

from handbook_ext.core.errors import UserError
from handbook_ext.recipes.section import Section
from handbook_ext.recipes.yaml_tree import nearest

FIRST_SEEDS = 5
"""Seeds before the first look at a width: of fewer, the spread between seeds is hardly known."""


class Until(Section):
    """When SEEDS=auto stops: once every interval is this narrow, or so many seeds are spent."""

    difference: float = Field(
        0.04, gt=0, le=0.5, description="how far the interval of each claim may reach to either side of its value, as a share"
    )
    seeds: int = Field(20, ge=FIRST_SEEDS, le=99, description="seeds at most")


def parse_until(text: str, otherwise: Until) -> Until:
    """Returns what UNTIL says, `difference=0.03 seeds=30`, one of them or both; what it leaves out is as in `otherwise`.

    Raises UserError for another word or a value out of range.
    """
    values = otherwise.model_dump()
    for word in text.split():
        name, sign, value = word.partition("=")
        if not sign or name not in values:
            raise UserError(
                f"UNTIL: {word!r} sets none of {', '.join(values)}{nearest(name, values)}; such as "
                'UNTIL="difference=0.03 seeds=30"'
            )
        values[name] = value
    try:
        return Until.model_validate(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"UNTIL: {first['loc'][0]}={first['input']}: {first['msg']}; difference is a share above 0 up to 0.5, seeds are "
            f"{FIRST_SEEDS} to 99"
        ) from None


def next_count(seeds: int, most: int) -> int:
    """Returns with how many seeds the next look is taken: a quarter more, one more at least, `most` at most."""
    return min(most, seeds + max(1, seeds // 4))
