"""What the papers prove of their losses, on a toy policy: a softmax over a handful of completions of one prompt, fp64.

Notation: p reference model, pi policy, r reward, beta strength of the KL penalty, h = log pi/p (chosen) - log pi/p (rejected).
Each expectation is derived by hand in the docstring of its test.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from handbook_ext.core.records import OfflinePair, assistant, user
from handbook_ext.objectives.losses import implicit_reward
from handbook_ext.objectives.objective import Objective
from handbook_ext.objectives.reward_form import RewardForm
from handbook_ext.selection.ensemble import StoredLogProbs, ensemble
from handbook_ext.selection.log_prob_store import LogProb, ScoreStore

REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 1.0, -0.5, 2.0], dtype=torch.float64)
BETA = 0.5
COUNT = len(REFERENCE)
OPTIMUM = (REFERENCE + REWARD / BETA).log_softmax(0)  # pi* = p exp(r / beta) / Z


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def losses_of(objective: Objective, logits: Tensor, pairs: list[tuple[int, int]], explore: int | None = None) -> Tensor:
    """The loss of each (chosen, rejected) under the policy softmax(logits); completions are one token long."""
    log_pi = logits.log_softmax(0)
    chosen, rejected = torch.tensor(pairs).T
    explored = torch.full_like(chosen, 0 if explore is None else explore)
    indices = torch.stack([chosen, rejected, explored])
    ones = torch.ones(len(pairs), dtype=logits.dtype)
    ours = log_pi[indices]
    present = ones * (explore is not None)
    return objective.losses((ours[0], ours[1], ours[2]), REFERENCE[indices], (ones, ones), present)


def gradient_of(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The gradient of a loss for the policy's logits."""
    inputs = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(inputs), inputs)[0]


def minimised(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The log-probs of the policy that minimises a loss, from the reference model on."""
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().log_softmax(0)


def unit(index: int) -> Tensor:
    return torch.eye(COUNT, dtype=torch.float64)[index]


ALL_PAIRS = [(c, r) for c in range(COUNT) for r in range(COUNT) if c != r]
SOME = torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=torch.float64)  # The logits of a policy like no other here.


# --- DPO ----------------------------------------------------------------------------------------------------------------


def bradley_terry(logits: Tensor) -> Tensor:
    """DPO's loss in expectation over labels of the Bradley-Terry model: i over j with probability sigmoid(r_i - r_j)."""
    shares = torch.tensor([sigmoid(float(REWARD[c] - REWARD[r])) for c, r in ALL_PAIRS], dtype=torch.float64)
    return (shares * losses_of(Objective(beta=BETA), logits, ALL_PAIRS)).sum()


def test_dpos_optimum_is_the_closed_form_of_the_kl_regularised_reward() -> None:
    """DPO, Eq. 4 and 7: beta h* = r_i - r_j, so log pi*/p = r / beta - log Z, from which pi* = p exp(r / beta) / Z."""
    found = minimised(bradley_terry)
    assert torch.allclose(found, OPTIMUM, atol=1e-6)
    assert not torch.allclose(found, REFERENCE, atol=0.1)


def test_the_closed_form_maximises_reward_less_kl() -> None:
    """DPO, Eq. 3 and A.1: E_pi[r] - beta KL(pi || p) = beta log Z - beta KL(pi || pi*), largest at pi* and there beta log Z."""

    def value(log_pi: Tensor) -> float:
        return float((log_pi.exp() * (REWARD - BETA * (log_pi - REFERENCE))).sum())

    log_z = float((REFERENCE + REWARD / BETA).logsumexp(0))
    found = minimised(bradley_terry)
    assert value(found) == pytest.approx(BETA * log_z)
    torch.manual_seed(1)
    others = [torch.randn(COUNT, dtype=torch.float64).log_softmax(0) for _ in range(50)]
    assert max(value(other) for other in others) < value(found)


def test_the_partition_function_of_the_implicit_reward_is_one() -> None:
    """SELM, A.1: with r = beta log pi/p, Z = sum p exp(r / beta) = sum pi = 1, so the inner maximum is beta log Z = 0."""
    reward = implicit_reward(SOME.log_softmax(0) - REFERENCE, beta=BETA)
    assert float((REFERENCE + reward / BETA).logsumexp(0)) == pytest.approx(0, abs=1e-12)


def test_dpos_gradient_is_weighted_by_how_wrong_the_implicit_reward_is() -> None:
    """DPO, Section 4: grad L = -beta sigmoid(-beta h) (grad log pi_c - grad log pi_r); of a softmax the bracket is e_c - e_r."""
    log_pi = SOME.log_softmax(0)
    h = float(log_pi[1] - REFERENCE[1] - log_pi[2] + REFERENCE[2])
    expected = -BETA * sigmoid(-BETA * h) * (unit(1) - unit(2))
    assert torch.allclose(gradient_of(lambda x: losses_of(Objective(beta=BETA), x, [(1, 2)]).sum(), SOME), expected, atol=1e-12)


# --- SELM ---------------------------------------------------------------------------------------------------------------

ALPHA = 0.3
SELM = Objective(beta=BETA, alpha=ALPHA)


def exploration(logits: Tensor, objective: Objective = SELM) -> Tensor:
    """The exploration term alone, in expectation over y ~ p: the loss with it less the loss without, by enumeration."""
    plain = Objective(beta=objective.beta)
    terms = [losses_of(objective, logits, [(1, 2)], explore=y) - losses_of(plain, logits, [(1, 2)]) for y in range(COUNT)]
    return (REFERENCE.exp() * torch.cat(terms)).sum()


def test_selms_objective_is_dpo_with_the_log_likelihood_of_the_references_answers() -> None:
    """SELM, Eq. 4.2: L = L_DPO + alpha beta E_{y~p} log pi(y), up to the constant E_p log p of the log-ratio form."""
    entropy = -float((REFERENCE.exp() * REFERENCE).sum())
    likelihood = float((REFERENCE.exp() * SOME.log_softmax(0)).sum())
    assert float(exploration(SOME)) == pytest.approx(ALPHA * BETA * (likelihood + entropy))
    paper = Objective(beta=BETA, alpha=ALPHA, explore_form="log_prob")
    assert float(exploration(SOME, paper)) == pytest.approx(ALPHA * BETA * likelihood)
    algorithm_1 = Objective(beta=BETA, alpha=ALPHA, alpha_scale="alpha")
    assert float(exploration(SOME, algorithm_1)) == pytest.approx(ALPHA * (likelihood + entropy))


def test_selms_gradient_is_the_papers() -> None:
    """SELM, Eq. 4.3: grad of alpha beta E_p[log pi] = alpha beta E_{y~pi}[exp(-r(y) / beta) grad log pi(y)], r = beta log pi/p.

    exp(-r / beta) = p / pi turns E_pi into E_p; of a softmax grad log pi(y) = e_y - pi, so both are alpha beta (p - pi).
    """
    log_pi = SOME.log_softmax(0)
    reward = implicit_reward(log_pi - REFERENCE, beta=BETA)
    per_answer = [math.exp(-float(reward[y]) / BETA) * (unit(y) - log_pi.exp()) for y in range(COUNT)]
    papers = ALPHA * BETA * sum(log_pi.exp()[y] * per_answer[y] for y in range(COUNT))
    by_hand = ALPHA * BETA * (REFERENCE.exp() - log_pi.exp())
    assert torch.allclose(papers, by_hand, atol=1e-12)
    assert torch.allclose(gradient_of(exploration, SOME), by_hand, atol=1e-12)


def test_the_exploration_term_is_a_kl_divergence_that_is_pushed_up() -> None:
    """E_p[beta log pi/p] = -beta KL(p || pi): the term is 0 at the reference model, negative elsewhere (SELM, Theorem 5.1).

    So of all policies the reference model has the largest term, and minimising the loss leads away from it.
    """
    assert float(exploration(REFERENCE)) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(gradient_of(exploration, REFERENCE), torch.zeros(COUNT, dtype=torch.float64), atol=1e-12)
    divergence = float((REFERENCE.exp() * (REFERENCE - SOME.log_softmax(0))).sum())
    assert divergence > 0.1
    assert float(exploration(SOME)) == pytest.approx(-ALPHA * BETA * divergence)


def test_a_step_on_the_exploration_term_lowers_what_has_a_low_implicit_reward() -> None:
    """The step is alpha beta (pi - p): an answer's logit falls where pi < p, which is where its implicit reward is negative."""
    reward = implicit_reward(SOME.log_softmax(0) - REFERENCE, beta=BETA)
    step = -gradient_of(exploration, SOME)
    assert set(reward.sign().tolist()) == {-1.0, 1.0}
    assert torch.equal(step.sign(), reward.sign())


@pytest.mark.parametrize("explore", range(COUNT))
def test_selm_pushes_down_the_answer_of_the_reference_model(explore: int) -> None:
    """From the reference model, whose sample is y: the step's extra part is -alpha beta (e_y - p).

    So log pi(y) changes by alpha beta (2 p_y - 1 - sum p^2), to first order, which is at most -alpha beta (1 - p_y)^2.
    """
    step, selm_step = (
        -gradient_of(lambda x, objective=objective: losses_of(objective, x, [(1, 2)], explore=explore).sum(), REFERENCE)
        for objective in (Objective(beta=BETA), SELM)
    )
    assert torch.allclose(selm_step - step, -ALPHA * BETA * (unit(explore) - REFERENCE.exp()), atol=1e-12)
    change = (REFERENCE + selm_step).log_softmax(0) - (REFERENCE + step).log_softmax(0)
    assert float(change[explore]) < 0
    assert int(change.argmin()) == explore


@pytest.mark.parametrize("scale", ["alpha_beta", "alpha"])
@pytest.mark.parametrize("form", ["log_ratio", "log_prob"])
def test_selm_without_optimism_is_dpo_to_the_bit(scale: str, form: str) -> None:
    selm = Objective(beta=BETA, alpha=0.0, alpha_scale=scale, explore_form=form)
    ours, dpo = losses_of(selm, SOME, ALL_PAIRS, explore=3), losses_of(Objective(beta=BETA), SOME, ALL_PAIRS)
    assert torch.equal(ours, dpo)


# --- noise, and the other losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.1, 0.4])
def test_rdpo_is_unbiased_under_flipped_labels_in_value_and_gradient(noise: float) -> None:
    """rDPO: ((1-e) L(h) - e L(-h)) / (1-2e), with L of DPO. Over labels flipped with probability e the mean is

    ((1-e)((1-e) L(h) - e L(-h)) + e ((1-e) L(-h) - e L(h))) / (1-2e) = ((1-e)^2 - e^2) L(h) / (1-2e) = L(h).
    """
    robust, dpo = Objective(loss_type="robust", beta=BETA, options={"label_smoothing": noise}), Objective(beta=BETA)

    def flipped(objective: Objective) -> Callable[[Tensor], Tensor]:
        weights = torch.tensor([1 - noise, noise], dtype=torch.float64)
        return lambda x: (weights * losses_of(objective, x, [(3, 0), (0, 3)])).sum()

    def clean(x: Tensor) -> Tensor:
        return losses_of(dpo, x, [(3, 0)]).sum()

    assert float(flipped(robust)(SOME)) == pytest.approx(float(clean(SOME)), rel=1e-12)
    assert torch.allclose(gradient_of(flipped(robust), SOME), gradient_of(clean, SOME), atol=1e-12)
    assert not torch.allclose(gradient_of(flipped(dpo), SOME), gradient_of(clean, SOME), atol=1e-2)


def margin_of(log_pi: Tensor, chosen: int, rejected: int) -> float:
    """The difference h of the two log-ratios."""
    ratio = log_pi - REFERENCE
    return float(ratio[chosen] - ratio[rejected])


def test_ipos_optimum_has_the_margin_one_over_two_beta() -> None:
    """IPO, Eq. 17: (h - 1 / (2 beta))^2 is 0 at h = 1 / (2 beta), where DPO's margin would grow without end."""
    found = minimised(lambda x: losses_of(Objective(loss_type="ipo", beta=BETA), x, [(3, 0)]).sum())
    assert margin_of(found, 3, 0) == pytest.approx(1 / (2 * BETA), abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_ipos_optimum_under_disputed_labels_is_the_preference_itself(share: float) -> None:
    """share (h - c)^2 + (1 - share) (-h - c)^2 with c = 1 / (2 beta) is least at h = (2 share - 1) c = (share - 1/2) / beta."""
    weights = torch.tensor([share, 1 - share], dtype=torch.float64)
    found = minimised(lambda x: (weights * losses_of(Objective(loss_type="ipo", beta=BETA), x, [(3, 0), (0, 3)])).sum())
    assert margin_of(found, 3, 0) == pytest.approx((share - 0.5) / BETA, abs=1e-6)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_cdpos_optimum_has_the_log_odds_of_a_right_label_as_margin(noise: float) -> None:
    """d/dx of -(1-e) log s(x) - e log s(-x) is s(x) - (1-e), 0 at x = beta h = log((1-e) / e)."""
    objective = Objective(beta=BETA, options={"label_smoothing": noise})
    found = minimised(lambda x: losses_of(objective, x, [(3, 0)]).sum())
    assert BETA * margin_of(found, 3, 0) == pytest.approx(math.log((1 - noise) / noise), abs=1e-6)


def test_slics_gradient_vanishes_beyond_its_margin() -> None:
    """max(0, 1 - beta h): slope -beta below h = 1 / beta, none above."""
    objective = Objective(loss_type="hinge", beta=BETA)
    for h, slope in ((1 / BETA - 0.1, -BETA), (1 / BETA + 0.1, 0.0)):
        gradient = gradient_of(lambda x: losses_of(objective, x, [(3, 0)]).sum(), REFERENCE + h * unit(3))
        assert torch.allclose(gradient, slope * (unit(3) - unit(0)), atol=1e-12)


# --- SeRA ---------------------------------------------------------------------------------------------------------------

SUMS = {  # Summed log-probs of chosen (4 tokens) and rejected (2 tokens) after no, one and two iterations.
    "start": (-8.0, -6.0), "iter1": (-7.0, -6.5), "iter2": (-6.0, -8.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("policies", "gamma", "against", "form", "margin"),
    [
        # Eq. 5 after iteration 1: (-7 + 8) - (-6.5 + 6) = 1.5. After iteration 2: (-6 + 7) - (-8 + 6.5) = 2.5.
        (["start", "iter1"], 0.3, "previous", RewardForm(), 1.5),
        (["start", "iter1", "iter2"], 0.0, "previous", RewardForm(), 2.5),
        # Eq. 7: 0.7 * 2.5 + 0.3 * 1.5; the older margin has the weight gamma.
        (["start", "iter1", "iter2"], 0.3, "previous", RewardForm(), 2.2),
        # Against the first policy iteration 2 has (-6 + 8) - (-8 + 6) = 4.0, which is 1.5 + 2.5: margins telescope.
        (["start", "iter1", "iter2"], 0.0, "start", RewardForm(), 4.0),
        (["start", "iter1", "iter2"], 0.5, "start", RewardForm(), 0.5 * 4.0 + 0.5 * 1.5),
        # IPO, per token: (-6 + 7) / 4 - (-8 + 6.5) / 2. SimPO, Eq. 17, no reference: -6 / 4 - -8 / 2.
        (["start", "iter1", "iter2"], 0.0, "previous", RewardForm(length_normalized=True), 1.0),
        (["start", "iter1", "iter2"], 0.0, "previous", RewardForm(reference=False, length_normalized=True), 2.5),
    ],
)
def test_seras_margins_by_hand(policies: list[str], gamma: float, against: str, form: RewardForm, margin: float) -> None:
    """SeRA, Eq. 5: m = log pi/p (chosen) - log pi/p (rejected), p what pi was trained against; Eq. 7: (1-g) m_t + g m_{t-1}."""
    pair = OfflinePair.of("p", user("ask"), assistant("good"), assistant("bad"))
    names = (pair.chosen_id, pair.rejected_id)
    store = ScoreStore(
        {policy: {name: LogProb(total, tokens) for name, total, tokens in zip(names, sums, (4, 2), strict=True)}
         for policy, sums in SUMS.items()}
    )  # fmt: skip
    terms = ensemble(policies, gamma=gamma, against=against, with_reference=form.reference)
    log_probs = StoredLogProbs(store, {policy: policy for policy in policies}, policies[-1], form, terms)
    assert log_probs.implicit_reward(names[0]) - log_probs.implicit_reward(names[1]) == pytest.approx(margin)
