"""The theory figures and the table of results, recomputed from the formulas and the raw records."""

import json
import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from lodrop_nn.reproduce.published import PUBLISHED
from lodrop_theory import placement_penalty
from lodrop_theory.placements import RANK_DROPOUT
from paper_figures import (
    _comparison,
    _measured,
    fig11_bound_against_rate,
    fig12_placements,
    fig13_ensemble_laws,
    fig14_feasibility,
    tab05_results,
)
from paper_figures._theory import SIZES

DELTA = 0.05
# Theorem 4.4 at C = 1, delta = 0.05, rho = 1, lambda = 1, Lmin = 0, as the design prints it.
PRINTED_RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
PRINTED = {
    "RTE": (0.063, 0.706, 0.508, 0.371, 0.314, 0.261, 0.239),
    "CoLA": (0.034, 0.381, 0.274, 0.200, 0.169, 0.141, 0.129),
    "SST-2": (0.012, 0.136, 0.098, 0.071, 0.060, 0.050, 0.046),
    "MNLI": (0.005, 0.056, 0.040, 0.030, 0.025, 0.021, 0.019),
}


def theorem(n, p, *, c=1.0, rho=1.0, low=0.0, penalty=1.0) -> float:
    """Theorem 4.4, written from the paper; infinite where mu <= 0."""
    mu = low + 2 * penalty * (2 * p - p * p)
    if mu <= 0:
        return math.inf
    return math.sqrt((c * c + 24 * c * rho * rho / mu) / (2 * n * DELTA))


# ---- figure 11


@pytest.fixture(scope="module")
def rates():
    return fig11_bound_against_rate.compute()


def test_the_curves_over_sizes_go_through_the_printed_values(rates) -> None:
    found = {(p.series, p.dropout_rate): p.value for p in rates if p.panel == "a"}
    floors = {p.parameter: p.value for p in rates if p.series == "floor"}
    for task, (floor, *gaps) in PRINTED.items():
        assert floors[SIZES[task]] == pytest.approx(floor, abs=5.1e-4)
        for rate, gap in zip(PRINTED_RATES, gaps, strict=True):
            assert found[task, rate] == pytest.approx(gap, abs=5.1e-4)
        assert found[task, 0.0] == math.inf
    assert list(SIZES) == sorted(SIZES, key=SIZES.__getitem__)
    assert len(floors) == 8


def test_every_gap_is_the_theorem_by_hand_and_no_kind_is_wrong(rates) -> None:
    n = SIZES["RTE"]
    for p in rates:
        if p.panel == "a" and p.series != "floor":
            expected = theorem(p.parameter, p.dropout_rate)
        elif p.series == "hessian_min_eig":
            expected = theorem(n, p.dropout_rate, low=p.parameter)
            mu = p.parameter + 2 * p.dropout_rate * (2 - p.dropout_rate)
            if abs(mu) < 1e-12:  # at the rate that repairs it: one ulp decides
                continue
        elif p.series == "penalty":
            expected = theorem(n, p.dropout_rate, penalty=p.parameter)
        else:
            continue
        assert p.value == pytest.approx(expected, rel=1e-9)
        assert p.kind == ("plug-in" if math.isfinite(expected) else "not applicable")


def test_the_repair_is_where_the_convexity_returns(rates) -> None:
    repairs = {p.parameter: p.dropout_rate for p in rates if p.series == "repair"}
    assert repairs[1.0] == 0
    for low in (-0.5, -1.0, -1.5):
        assert repairs[low] == pytest.approx(1 - math.sqrt(1 + low / 2), abs=1e-12)
        below = [
            p
            for p in rates
            if p.series == "hessian_min_eig"
            and p.parameter == low
            and p.dropout_rate < repairs[low]
        ]
        assert below
        assert all(p.value == math.inf for p in below)


def test_the_companions_are_their_formulas(rates) -> None:
    n, root = SIZES["RTE"], math.sqrt(math.log(1 / DELTA))
    found = {(p.series, p.dropout_rate): p.value for p in rates if p.panel == "b"}
    places = sorted({rate for _, rate in found if rate > 0})
    for rate in places:
        mu = 2 * rate * (2 - rate)
        b = 2 / (mu * n)  # remove and replace one, the first with 1 / (n - 1)
        expected = {
            "lin2024": theorem(n, rate),
            "two-stability": math.sqrt((1 + 20 / mu) / (2 * n * DELTA)),
            "uniform-tail": b + (2 * n * b + 1) * root / math.sqrt(2 * n),
            "expectation": b,
            "l2-stability": (math.sqrt(1 / (4 * n) + b * b / 2) + b / math.sqrt(2) + b)
            / math.sqrt(DELTA),
        }
        for bound, value in expected.items():
            assert found[bound, rate] == pytest.approx(value, rel=1e-9)
        if rate >= 0.04:  # as the title of the panel says
            assert max(v for name, v in expected.items() if name != "lin2024") < theorem(n, rate)


def test_what_the_titles_say_of_the_sizes(rates) -> None:
    best = theorem(1, math.nextafter(1, 0))
    assert 0.72 < best / theorem(1, 0.3) < 0.73
    assert math.sqrt(1 + 24 / 2) == pytest.approx(best * math.sqrt(2 * DELTA))


def test_the_theorem_at_measured_penalties_is_vacuous_and_with_its_own_numbers_not_applicable(
    rates,
) -> None:
    raw = [json.loads(path.read_text()) for path in _comparison.RECORDS.glob("*.json")]
    raw = [run for run in raw if run["dropout_rate"] > 0]
    assert len(raw) == 12
    for name in ("penalty", "penalty_kkt"):
        points = {p.parameter: p for p in rates if p.series == f"{name}, measured"}
        assert len(points) == 12
        for run in raw:
            point = points[run[name]["value"]]
            gaps = [
                theorem(SIZES["RTE"], run["dropout_rate"], penalty=run[name][end])
                for end in ("high", "value", "low")
                if run[name][end] is not None
            ]
            assert point.value == pytest.approx(gaps[len(gaps) // 2], rel=1e-9)
            assert point.value > 1
            if name == "penalty":
                assert (point.low, point.high) == pytest.approx((gaps[0], gaps[2]), rel=1e-9)
    own = [p for p in rates if p.series == "own"]
    for run in raw:
        s = run["dropout_rate"] * (2 - run["dropout_rate"])
        assert run["hessian_min_eig"]["value"] + 2 * run["penalty"]["high"] * s < 0
    assert [p.kind for p in own] == ["not applicable"] * 12


# ---- figure 12


@pytest.fixture(scope="module")
def placements():
    return fig12_placements.compute()


def _exact(points, panel):
    return {
        (p.series, p.dropout_rate): p.value for p in points if p.panel == panel and not p.n_draws
    }


def test_penalties_are_the_closed_forms(placements) -> None:
    for panel, correlation in (("a", 0.0), ("b", fig12_placements.CORRELATION)):
        found = _exact(placements, panel)
        sigma = fig12_placements.second_moment(correlation)
        assert np.all(np.diag(sigma) == 1)
        a, b = fig12_placements.layer(sigma)
        d = b @ a
        whole = np.trace(d @ sigma @ d.T) / np.sum(d**2)
        terms = np.diag(b.T @ b) @ np.diag(a @ sigma @ a.T) / np.sum(d**2)
        for rate in sorted({rate for _, rate in found}):
            q = 1 - rate
            odds = rate / q
            expected = {
                "input": odds,
                "output": odds * whole,
                "both": odds * whole + odds / q,
                "entry": 1 / q**2 - 1,
                "rank": odds * terms,
            }
            for name, value in expected.items():
                assert found[name, rate] == pytest.approx(value, rel=1e-9, abs=1e-12)
        assert (whole == pytest.approx(1)) == (panel == "a")


def test_rank_masks_add_least_at_factors_of_equal_norms(placements) -> None:
    found = _exact(placements, "a")
    sigma = fig12_placements.second_moment(0.0)
    a, b = fig12_placements.layer(sigma)
    u, s, vh = np.linalg.svd(b @ a, full_matrices=False)
    rank = fig12_placements.RANK
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    root = np.sqrt(s[:rank])
    best_b, best_a = (u[:, :rank] * root) @ hadamard, hadamard.T @ (root[:, None] * vh[:rank])
    np.testing.assert_allclose(best_b @ best_a, b @ a, atol=1e-10)
    for rate in (0.1, 0.5, 0.7):
        at_best = placement_penalty(RANK_DROPOUT, rate, best_a, best_b, sigma, rescale=True)
        least = found[fig12_placements.LEAST, rate]
        assert at_best / np.sum((b @ a) ** 2) == pytest.approx(least, rel=1e-9)
        assert least < found["rank", rate]


def test_simulated_penalties_agree_with_the_exact_ones(placements) -> None:
    held = []
    for panel in "ab":
        exact = _exact(placements, panel)
        for p in (p for p in placements if p.panel == panel and p.n_draws):
            assert p.low < p.value < p.high
            assert p.high - p.low < 0.25 * p.value  # or the check says little
            held.append(p.low <= exact[p.series, p.dropout_rate] <= p.high)
    assert len(held) == 40
    assert sum(held) >= 35  # 95% each: fewer happen with probability 0.004 when all is right


def test_implied_penalties_are_the_closed_forms(placements) -> None:
    found = _exact(placements, "c")
    smallest = float(
        np.linalg.eigvalsh(fig12_placements.second_moment(fig12_placements.CORRELATION))[0]
    )
    for rate in sorted({rate for _, rate in found}):
        q, s = 1 - rate, rate * (2 - rate)
        one_side = rate / q / (2 * s)
        expected = {
            "both, isotropic": 1 / (2 * q * q),
            "entry, isotropic": 1 / (2 * q * q),
            "input, isotropic": one_side,
            "output, isotropic": one_side,
            "both, correlated": one_side * (smallest + 1 / q),
            "entry, correlated": 1 / (2 * q * q),
            "input, correlated": one_side,
            "output, correlated": one_side * smallest,
        }
        for name, value in expected.items():
            assert found[name, rate] == pytest.approx(value, rel=1e-9)


# ---- figure 13


@pytest.fixture(scope="module")
def laws():
    return fig13_ensemble_laws.compute()


def test_the_exact_excess_is_the_sum_over_all_tuples_of_masks(laws) -> None:
    first, second = fig13_ensemble_laws.TERMS
    found = {(p.series, p.dropout_rate, p.n_masks): p.value for p in laws if p.panel == "a"}
    for rate in fig13_ensemble_laws.RATES:
        q = 1 - rate
        masks = []
        for row, one, two in product((0, 1), repeat=3):
            logit = row * (one * first + two * second) / q**2
            chance = math.prod(q if kept else rate for kept in (row, one, two))
            masks.append((chance, 1 / (1 + math.exp(-logit))))
        mean = math.fsum(chance * right for chance, right in masks)
        variance = math.fsum(chance * (right - mean) ** 2 for chance, right in masks)
        for n in (1, 2, 4):
            excess = math.log(mean)
            for members in product(masks, repeat=n):
                chance = math.prod(each[0] for each in members)
                excess -= chance * math.log(sum(each[1] for each in members) / n)
            assert found["exact", rate, n] == pytest.approx(excess, rel=1e-9)
            law = variance / (2 * n * mean**2)
            assert found["law", rate, n] == pytest.approx(law, rel=1e-9)


def test_the_law_is_the_limit_of_the_excess(laws) -> None:
    found = {(p.series, p.dropout_rate, p.n_masks): p.value for p in laws if p.panel == "a"}
    for rate in fig13_ensemble_laws.RATES:
        errors = [
            abs(found["exact", rate, n] / found["law", rate, n] - 1)
            for n in fig13_ensemble_laws.SIZES
        ]
        assert errors[-1] < 0.005
        assert errors[-1] < errors[-2] < errors[-3]


def test_variance_ratios_are_closed_forms_and_records(laws) -> None:
    raw = json.loads((_comparison.BENCHMARKS / "mask_variance.json").read_text())["rates"]
    found = [p for p in laws if p.panel in "cd"]
    for p in found:
        odds = p.dropout_rate / (1 - p.dropout_rate)
        if p.series.startswith("u/t"):
            share = float(p.series.rpartition(" ")[2])
            n = p.n_masks
            expected = n / (n - 1) * odds / (1 + odds + share)
            assert p.value == pytest.approx(expected, rel=1e-9)
        else:
            cell = raw[f"p = {p.dropout_rate:g}"][f"{p.series}, N = {p.n_masks}"]
            assert (p.value, p.low, p.high) == (cell["variance_ratio"], cell["low"], cell["high"])
            assert p.low <= p.value <= p.high < 1
    assert {p.series for p in found} >= {"balanced", "orthogonal", "u/t = 1"}


def test_the_law_of_a_pool_is_fitted_at_eight_masks_and_predicts_the_rest(laws) -> None:
    counts = json.loads((_comparison.BENCHMARKS / "ablation.json").read_text())["counts"]
    found = {(p.series, p.n_masks): p for p in laws if p.panel == "b"}
    for data in ("movie-reviews", "sarcasm", "trec"):
        nll = {
            (r["seed"], r["n_masks"]): r["nll"]
            for r in counts
            if (r["data"], r["arm"]) == (data, "example-balanced")
        }
        excess = {
            n: np.array([nll[seed, n] - nll[seed, 16] for seed in range(5)]) for n in (1, 2, 4, 8)
        }
        assert np.all(excess[8] > 0)  # non-increasing, whatever the adapter
        for n, ratio in {1: 15.0, 2: 7.0, 4: 3.0, 8: 1.0}.items():
            point, law = found[data, n], found[f"{data}, law", n]
            half = stats.t.ppf(0.975, 4) * stats.sem(excess[n])
            mean = excess[n].mean()
            expected = (mean, mean - half, mean + half)
            np.testing.assert_allclose((point.value, point.low, point.high), expected, rtol=1e-9)
            assert law.value == pytest.approx(ratio * excess[8].mean(), rel=1e-9)
            assert law.value == pytest.approx(point.value, rel=0.05)


# ---- figure 14


@pytest.fixture(scope="module")
def plans():
    return fig14_feasibility.compute()


def test_needed_sizes_reach_their_target_and_no_smaller_one_does(plans) -> None:
    over_rates = [p for p in plans if p.panel == "a" and math.isfinite(p.target_gap)]
    assert {p.series for p in over_rates} == {"target", "needed", "no p helps"}
    for p in over_rates:
        numbers = {"low": fig14_feasibility.EIGENVALUE}
        assert theorem(p.n_train, p.x, **numbers) <= p.target_gap * (1 + 1e-12)
        smaller = math.floor(p.n_train * (1 - 1e-7)) - 1  # near the repair, mu has few digits
        assert theorem(smaller, p.x, **numbers) > p.target_gap
    least = {p.target_gap: p.n_train for p in over_rates if p.series == "no p helps"}
    for target in fig14_feasibility.TARGETS:
        on_curve = [p.n_train for p in over_rates if p.target_gap == target]
        assert min(on_curve) == least[target]  # at mu = 1 the limit is 5 C / sqrt(2 n delta)
        assert least[target] == pytest.approx(25 / (2 * DELTA * target**2), abs=2)
    assert {p.series: p.n_train for p in plans if p.series in SIZES} == SIZES


def test_the_run_lies_where_its_record_says(plans) -> None:
    run = next(r for r in _measured.read() if r.dropout_rate == 0.5)
    here = [p for p in plans if p.panel == "b"]
    start = next(p.x for p in here if p.series == "repair")
    low, penalty = run.hessian_min_eig.value, run.penalty
    assert penalty is not None
    assert start == pytest.approx(-low / 1.5)
    point = next(p for p in here if p.series == "run")
    assert (point.x, point.low, point.high) == (penalty.value, penalty.low, penalty.high)
    assert point.n_train == run.n_train
    factor = next(p for p in here if p.series == "factor")
    assert factor.low < factor.x < factor.high
    assert factor.x == pytest.approx(start / penalty.value)
    assert factor.low > 100  # out of its reach at either end
    any_rate = [p.x for p in here if p.series == "any p"]
    assert penalty.value < -low / 2  # so that mu <= 0 at every rate
    assert np.isnan(any_rate).tolist() == [True]
    numbers = {"c": run.loss_range.value, "rho": run.lipschitz.value, "low": low}
    reached = [p for p in here if p.series == "target" and math.isfinite(p.n_train)]
    assert len(reached) > 500
    for p in reached:
        if p.x < 1.001 * start:  # mu is all cancellation
            continue
        at = {**numbers, "penalty": p.x}
        assert theorem(p.n_train, 0.5, **at) <= p.target_gap * (1 + 1e-12)
        smaller = math.floor(p.n_train * (1 - 1e-9)) - 1
        assert smaller < 1 or theorem(smaller, 0.5, **at) > p.target_gap


def test_no_penalty_reaches_the_measured_gap_at_the_size_of_the_run(plans) -> None:
    run = next(r for r in _measured.read() if r.dropout_rate == 0.5)
    gap = run.predictors["mean"].generalization_gap.value
    found = {p.target_gap: p.x for p in plans if p.panel == "b" and p.series == "needed"}
    assert run.loss_range.value / math.sqrt(2 * run.n_train * DELTA) > gap
    assert math.isnan(found[gap])
    numbers = {"c": run.loss_range.value, "rho": run.lipschitz.value}
    low = run.hessian_min_eig.value
    for target in (run.loss_range.value, 1.0):
        at = {**numbers, "low": low}
        assert theorem(run.n_train, 0.5, **at, penalty=found[target]) <= target * (1 + 1e-9)
        assert theorem(run.n_train, 0.5, **at, penalty=0.999 * found[target]) > target


# ---- table 5


@pytest.fixture(scope="module")
def cells():
    return tab05_results.compute()


def test_every_quoted_score_is_a_published_one_and_no_dropout_row_has_any(cells) -> None:
    published = {(s.method, s.task, s.metric, s.budget): s.percent for s in PUBLISHED}
    quoted = [c for c in cells if c.status == "quoted"]
    for c in quoted:
        name = tab05_results.PUBLISHED_AS[c.method]
        assert published[name, c.task, c.metric, c.budget] == c.value
        assert c.source
    names = set(tab05_results.PUBLISHED_AS.values())
    assert len(quoted) == sum(s.method in names for s in PUBLISHED)
    assert not [c for c in quoted if "dropout" in c.method or c.table in ("mmlu", "ours")]


def test_every_measured_score_is_that_of_the_single_seeds(cells) -> None:
    raw = json.loads((_comparison.BENCHMARKS / "quality.json").read_text())["splits"]
    measured = [c for c in cells if c.status == "measured"]
    assert {(c.method, c.predictor) for c in measured} >= {
        ("lora", "mean"),
        ("lora+dropout", "mean"),
        ("lora+dropout", "ensemble"),
    }
    for c in measured:
        if c.method not in ("lora", "lora+dropout"):
            continue
        arm = {"lora": "lora", "lora+dropout": "example-balanced"}[c.method]
        key = (c.task, arm, c.predictor, "last", False)
        values = [
            s[c.metric] * (1 if c.metric == "nll" else 100)
            for s in raw
            if (s["data"], s["arm"], s["predictor"], s["epoch"], s["tempered"]) == key
        ]
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        mean = np.mean(values)
        assert c.n_seeds == len(values) == 5
        np.testing.assert_allclose((c.value, c.low, c.high), (mean, mean - half, mean + half), 1e-4)


def test_an_empty_cell_is_empty_in_print(cells) -> None:
    empty = [c for c in cells if c.status == "empty"]
    assert all(math.isnan(c.value) and not c.source for c in empty)
    text = tab05_results.as_markdown(cells)
    body = text.partition(tab05_results.LEGEND)[0]
    quoted = sum(c.status == "quoted" for c in cells)
    assert body.count(tab05_results.QUOTED) == quoted
    assert "nan" not in body
    dropout = next(line for line in body.splitlines() if line.startswith("| LoRA + LoRA Dropout"))
    assert not any(ch.isdigit() for ch in dropout)
