"""Whose margins select: SeRA's ensemble over the policies of a run (Ko et al. 2025, Eq. 7, reconstructed)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from handbook_ext.core.errors import UserError


@dataclass(frozen=True)
class EnsembleTerm:
    """A part of the ensemble: the weight of one policy's measure, and that policy's reference (None: it has none)."""

    weight: float
    policy: str
    reference: str | None


def ensemble(policies: Sequence[str], *, gamma: float, against: str, with_reference: bool) -> list[EnsembleTerm]:
    """Returns the terms of (1 - gamma) m_latest + gamma m_before (Eq. 7) for the policies of a run so far, the first first.

    The first policy has no margin, so with two policies there is one term; gamma 0 is no ensemble. `against`:
    `previous` takes the reference that a policy was trained against, `start` the first policy. Raises UserError where no
    policy was trained yet.
    """
    if with_reference and len(policies) < 2:
        raise UserError(
            "select.keep_by margin and select.bootstrap need a policy that an iteration before has trained; let the first "
            "iteration use select.rule: dataset"
        )

    def term(weight: float, place: int) -> EnsembleTerm:
        reference = policies[0] if against == "start" else policies[place - 1]
        return EnsembleTerm(weight, policies[place], reference if with_reference else None)

    last = len(policies) - 1
    if gamma == 0 or last < 2:
        return [term(1.0, last)]
    return [term(1 - gamma, last), term(gamma, last - 1)]
