"""SELM's Algorithm 2, cumulative data, on a bandit of three completions: the regret that the paper bounds, measured.

Zhang et al. 2024, Algorithm 2: D_0 is empty; at step t a pair y1 ~ pi_{t-1}, y2 ~ p (the reference model) is labelled by the
Bradley-Terry model of the true reward and added to D; pi_t = argmin over the policy class of L_DPO(pi; D) + alpha E_p[log pi].
Theorem 5.3 bounds the regret, the sum over t of J(pi*) - J(pi_t) with J = E_pi[r] - beta KL(pi || p), by a constant times
sqrt(T log |class|). The class here is finite, p exp(r / beta) / Z for every reward of a grid that holds the true one, so each
argmin is exact and the assumptions hold (realisable, bounded rewards).
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from handbook_ext.objectives.losses import dpo_loss, exploration_term

BETA = 0.5
REFERENCE = torch.tensor([0.49, 0.49, 0.02], dtype=torch.float64).log()  # The best completion is one that p hardly gives.
TRUE_REWARD = torch.tensor([0.0, -1.0, 2.0], dtype=torch.float64)
GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)
STEPS, SEEDS = 400, 20

# Only differences of rewards matter, so the first completion's is 0. POLICIES (25, 3) are log-probs.
POLICIES = torch.stack(
    [
        (REFERENCE + torch.tensor([0.0, *rest], dtype=torch.float64) / BETA).log_softmax(0)
        for rest in itertools.product(GRID, repeat=2)
    ]
)
OPTIMUM = (REFERENCE + TRUE_REWARD / BETA).log_softmax(0)


def value(log_pi: Tensor) -> float:
    """J: the KL-regularised true reward of a policy."""
    return float((log_pi.exp() * (TRUE_REWARD - BETA * (log_pi - REFERENCE))).sum())


def regrets(alpha: float, seed: int, *, cumulative: bool = True) -> tuple[list[float], Tensor]:
    """The regret of each step, and the last policy; without `cumulative` each step learns from its own pair alone."""
    generator = torch.Generator().manual_seed(seed)
    ratios = POLICIES - REFERENCE
    loss = dpo_loss(ratios[:, :, None], ratios[:, None, :], beta=BETA)  # (policy, chosen, rejected)
    optimism = exploration_term(POLICIES, beta=BETA, alpha=alpha, scale="alpha") @ REFERENCE.exp()
    from_reference = ((REFERENCE - POLICIES) * REFERENCE.exp()).sum(1)
    labels = torch.zeros(3, 3, dtype=torch.float64)
    policy, found = REFERENCE, []
    for _ in range(STEPS):
        found.append(value(OPTIMUM) - value(policy))
        ours, references = (int(torch.multinomial(each.exp(), 1, generator=generator)) for each in (policy, REFERENCE))
        better = torch.sigmoid(TRUE_REWARD[ours] - TRUE_REWARD[references])
        won = bool(torch.rand((), generator=generator) < better)
        if not cumulative:
            labels.zero_()
        if ours != references:
            labels[(ours, references) if won else (references, ours)] += 1
        total = (loss * labels).sum((1, 2)) + optimism
        tied = torch.nonzero(total <= total.min() + 1e-12)[:, 0]  # Nothing seen, no optimism: stay near the reference.
        policy = POLICIES[tied[from_reference[tied].argmin()]]
    return found, policy


@pytest.fixture(scope="module")
def runs() -> dict[str, Tensor]:
    """The regrets of each kind of learner, (seeds, steps)."""
    kinds = {"optimistic": (1.0, True), "dpo": (0.0, True), "forgetful": (1.0, False)}
    return {
        name: torch.tensor([regrets(alpha, seed, cumulative=cumulative)[0] for seed in range(SEEDS)])
        for name, (alpha, cumulative) in kinds.items()
    }


def test_the_class_holds_the_optimum() -> None:
    assert min(float((policy - OPTIMUM).abs().max()) for policy in POLICIES) < 1e-12
    assert value(OPTIMUM) > max(value(policy) for policy in POLICIES) - 1e-12
    assert value(OPTIMUM) - value(REFERENCE) > 0.5


def test_without_data_the_learner_is_optimistic_and_dpo_stays_at_the_reference() -> None:
    """With D empty the optimist minimises alpha E_p[log pi]: of the class, the policy of the largest KL(p || pi)."""
    likelihoods = POLICIES @ REFERENCE.exp()
    optimism = exploration_term(POLICIES, beta=BETA, alpha=1.0, scale="alpha") @ REFERENCE.exp()
    assert int(optimism.argmin()) == int(likelihoods.argmin())
    assert float(POLICIES[optimism.argmin()].exp()[2]) > 0.5 > 10 * float(REFERENCE.exp()[2])


def test_average_regret_falls_at_least_as_the_theorem_says(runs: dict[str, Tensor]) -> None:
    """Regret O(sqrt T) makes the average regret fall to a half or less from T = 100 to T = 400."""
    average = runs["optimistic"].mean(0)
    assert float(average.mean()) <= 0.5 * float(average[:100].mean())
    assert float(average[-50:].mean()) < 0.01 * (value(OPTIMUM) - value(REFERENCE))


def test_the_learner_ends_at_the_optimum() -> None:
    ends = [regrets(1.0, seed)[1] for seed in range(3)]
    assert all(torch.allclose(policy, OPTIMUM) for policy in ends)


def test_optimism_finds_the_rare_best_completion_sooner_than_dpo(runs: dict[str, Tensor]) -> None:
    """DPO must wait until the reference model happens to give it, one sample in fifty: its first hundred steps cost more."""
    optimistic, dpo = (runs[name][:, :100].sum(1) for name in ("optimistic", "dpo"))
    assert float(optimistic.mean()) < 0.7 * float(dpo.mean())
    assert int((optimistic < dpo).sum()) >= 0.7 * SEEDS


def test_the_data_must_accumulate(runs: dict[str, Tensor]) -> None:
    """A learner that forgets keeps a regret per step that does not fall: it is linear in T."""
    average = runs["forgetful"].mean(0)
    assert float(average[-100:].mean()) > 0.7 * float(average[:100].mean())
    assert float(average[-100:].mean()) > 10 * float(runs["optimistic"].mean(0)[-100:].mean())
