"""Calling make, or a program that may call it, from under make: what the outer one hands down is left behind."""

from __future__ import annotations

import os

from handbook_ext.core.goal_progress import PROGRESS

HANDED_DOWN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKE_TERMOUT", "MAKE_TERMERR", PROGRESS)
"""The goal, options, variables and terminal of an outer make, and the list of its stages."""


def as_by_hand() -> dict[str, str]:
    """Returns the environment without what an outer make put into it, for a make that starts as one typed by hand."""
    return {name: value for name, value in os.environ.items() if name not in HANDED_DOWN}
