"""Whose margins select: SeRA's ensemble over the policies of a run (Ko et al. 2025, Eq. 7, reconstructed).

The implicit reward of a completion under a policy is its log-ratio to that policy's reference (Eq. 5), or what the loss is
made of (`RewardForm`), without constants such as beta. Eq. 7 mixes the rewards of two policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_ext.core.artifacts import read_manifest
from handbook_ext.core.errors import UserError
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.selection.log_prob_store import LogProb, ScoreStore, read_stores


@dataclass(frozen=True)
class EnsembleTerm:
    """A part of the ensemble: the weight of one policy's implicit reward, and that policy's reference (None: it has none)."""

    weight: float
    policy: str
    reference: str | None


def ensemble(policies: Sequence[str], *, gamma: float, against: str, with_reference: bool) -> list[EnsembleTerm]:
    """Returns the terms of (1 - gamma) m_latest + gamma m_before (Eq. 7) for the policies of a run so far, the initial one first.

    The initial policy has no margin, so with two policies there is one term; gamma 0 is no ensemble. `against`:
    `previous` takes the reference that a policy was trained against, `start` the initial policy. Raises UserError where no
    policy was trained yet.
    """
    if with_reference and len(policies) < 2:
        raise UserError(
            "select.keep_by margin and select.bootstrap need a policy that an iteration before has trained; let the first "
            "iteration use select.rule: dataset"
        )

    def term(weight: float, index: int) -> EnsembleTerm:
        # Eq. 5 says "reference model" and leaves open whose: each policy's own, as the derivation from DPO's optimum has it, or
        # one for all terms, which measures how far the policies have come since the start.
        reference = policies[0] if against == "start" else policies[index - 1]
        return EnsembleTerm(weight, policies[index], reference if with_reference else None)

    # gamma weighs the older margin: the paper finds that 0.1 to 0.5 beats 0.7 to 0.9 and concludes that later policies matter
    # more. How many margins are mixed from iteration 4 on is open; here always the two latest.
    last = len(policies) - 1
    if gamma == 0 or last < 2:
        return [term(1.0, last)]
    return [term(1 - gamma, last), term(gamma, last - 1)]


@dataclass(frozen=True)
class StoredLogProbs:
    """What SeRA reads of the score stores: log-probs under the policy that starts the iteration, and implicit rewards.

    `hashes` gives the hash of each policy by its name in the run, `starts_from` names the policy that starts the iteration.
    """

    store: ScoreStore
    hashes: Mapping[str, str]
    starts_from: str
    form: RewardForm
    terms: Sequence[EnsembleTerm]

    def at_start(self, completion: str) -> LogProb:
        """Returns a completion's log-prob under the policy that starts the iteration, which is training's reference.

        Raises UserError where it was never computed, as all methods here.
        """
        return self.store.of(self.hashes[self.starts_from], completion)

    def scored(self, completion: str) -> bool:
        """Returns whether the policy that starts the iteration scored a completion: not behind a prompt that is too long."""
        return completion in self.store.under(self.hashes[self.starts_from])

    def implicit_reward(self, completion: str) -> float:
        """Returns a completion's implicit reward, mixed over the terms, in nats or nats per token."""
        total = 0.0
        for term in self.terms:
            # Each policy against its own reference; constants such as beta change no ranking and are left out, as in Eq. 5.
            own = self.store.of(self.hashes[term.policy], completion)
            reference = self.store.of(self.hashes[term.reference], completion).total if term.reference else 0.0
            total += term.weight * self.form.value(own.total, reference, own.tokens)
        return total


def read_log_probs(
    folders: Sequence[Path], *, starts_from: str, form: RewardForm, terms: Sequence[EnsembleTerm]
) -> StoredLogProbs:
    """Returns the log-probs in the score stores of a run, the iteration's own last; its manifest gives the policies' hashes."""
    return StoredLogProbs(read_stores(folders), read_manifest(folders[-1])["external"], starts_from, form, terms)
