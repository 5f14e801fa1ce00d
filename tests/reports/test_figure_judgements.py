"""What the sorted differences of implicit rewards say in numbers and words: by hand, against scipy, and on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from handbook_ext.reports.figure_judgements import judge_differences, sorted_curve
from handbook_ext.reports.paper_figures import render_paper_figure
from tests.recipe_folder import ROOT
from tests.reports.figure_world import evaluation, sources


def seeds(*means: float, prompts: int = 200, shared: bool = True) -> list[dict[str, float]]:
    """Differences that scatter by 1 around a mean of each seed, of the same prompts in another order, or of its own."""
    rng = np.random.default_rng(1)
    names = [[f"{0 if shared else seed} {number}" for number in rng.permutation(prompts)] for seed in range(len(means))]
    noise = [rng.normal(0, 1, prompts) for _ in means]
    noise = [each - each.mean() for each in noise]
    return [dict(zip(one, mean + each, strict=True)) for one, mean, each in zip(names, means, noise, strict=True)]


def test_mean_and_share_are_judged_by_seeds_and_prompts() -> None:
    above = judge_differences(seeds(0.5, 0.6, 0.55))
    assert [fact.name for fact in above.facts] == ["mean", "above 0, %:"]
    assert above.facts[0].value == pytest.approx(0.55)
    assert above.notes[0].startswith("mean: above 0 (80 % power at 0.") and above.notes[1].startswith("share: above 50 % (")
    below = judge_differences(seeds(-0.5, -0.6, -0.55))
    assert below.notes[0].startswith("mean: below 0 (80 % power at 0.") and below.notes[1].startswith("share: below 50 % (")


def test_seeds_that_disagree_tell_nothing_however_many_prompts_they_have() -> None:
    """0.3 and 0.9: the bootstrap lies above 0, Student's t over two seeds (12.7 errors of 0.3) does not."""
    apart = judge_differences(seeds(0.3, 0.9, prompts=1000))
    assert apart.facts[0].low > 0
    reach = stats.nct.ppf(0.2, 1, 16.334 * np.ones(1))[0]  # The noncentrality of which a fifth lies below t.
    assert reach == pytest.approx(stats.t.ppf(0.975, 1), rel=1e-3)
    assert apart.notes[0] == f"mean: cannot tell from 0 (80 % power at {16.334 * 0.3:.3f} away)"
    assert judge_differences(seeds(0.5)).notes == ("one seed, no verdict",)


def test_prompts_that_seeds_share_are_drawn_together_whatever_their_order() -> None:
    """The same differences in each seed know no more than one seed of them: drawn apart, the interval would be narrower."""
    one = seeds(0.2)[0]
    turned = dict(reversed(one.items()))
    alone, together = (judge_differences(each).facts[0] for each in ([one], [one, turned, one]))
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.1)
    points = sorted_curve("t", [one, turned]).points
    assert [point.y for point in points] == pytest.approx(sorted([*one.values()] * 2))


def test_the_page_of_figure_5_says_what_its_curve_concludes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("handbook_ext.reports.paper_figures.pictures", lambda *words, **more: {})
    for seed, name in ((1, ""), (2, "-seed2")):
        evaluation(tmp_path / f"tiny-selm{name}/iter2", [1] * 3, held_out={"sample": [(2.0 + seed, 1, 2)] * 3})
        evaluation(tmp_path / f"tiny-dpo{name}/iter2", [1] * 3, held_out={"sample": [(1.0, 1, 2)] * 3})
    page = render_paper_figure("selm5", sources(tmp_path, seeds=(1, 2)))["selm5-tiny.md"].decode()
    assert "\n- SELM iter 2 less DPO iter 2, own samples: mean 2.500 [2.000, 3.000]; above 0, %: 100.0 [100.0, 100.0]; " in page
    assert "mean: cannot tell from 0 (80 % power at 8.167 away); share: above 50 %.\n" in page
    assert "are called above or below where Student's t over the seeds agrees" in page
