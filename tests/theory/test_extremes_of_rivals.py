"""The rival bounds at the ends of their domains: no warning, no nan, the limits exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodrop_theory.bounds.bousquet2020 import uniform_log_bound
from lodrop_theory.bounds.catoni2007 import catoni_bound, mcallester2013_bound
from lodrop_theory.bounds.covering import covering_bound
from lodrop_theory.bounds.dropout_stability import dropout_stability
from lodrop_theory.bounds.feldman2018 import feldman_vondrak_bound
from lodrop_theory.bounds.gaussian_masks import masked_factors_kl, masked_update_kl
from lodrop_theory.bounds.hardt2016 import sgd_stability
from lodrop_theory.bounds.hold_out import hold_out_kl_bound
from lodrop_theory.bounds.leave_one_out import l2_leave_one_out_bound, leave_one_out_bound
from lodrop_theory.bounds.lotfi2023 import compression_bound, compression_kl_bound
from lodrop_theory.bounds.maurer2004 import (
    pac_bayes_kl_bound,
    pac_bayes_quadratic_bound,
    pac_bayes_root_bound,
)
from lodrop_theory.bounds.maurer2009 import empirical_bernstein_bound
from lodrop_theory.bounds.transverse import transverse_stability
from lodrop_theory.inputs import (
    BernsteinHoldOutInputs,
    CompressionInputs,
    CoveringInputs,
    DropoutCurvatureInputs,
    HoldOutInputs,
    L2LeaveOneOutInputs,
    LeaveOneOutInputs,
    PacBayesInputs,
    SgdInputs,
    TransverseInputs,
    UniformStabilityInputs,
)
from tests.theory.strategies import magnitudes

ns = st.sampled_from([1, 2, 3, 10**6, 10**15])
cs = st.sampled_from([1e-300, 1e-30, 1.0, 1e30, 1e150])
deltas = st.sampled_from([1e-300, 1e-12, 0.05, 0.999999])
sizes = st.sampled_from([0.0, 1e-300, 1.0, 1e30, 1e150])


@given(n=ns, c=cs, delta=deltas, size=sizes, share=st.sampled_from([0.0, 0.5, 1.0]))
def test_no_warning_no_nan_and_no_less_than_the_risk(n, c, delta, size, share) -> None:
    tail = {"n_train": n, "loss_range": c, "delta": delta}
    x = PacBayesInputs(empirical_risk=share * c, kl_nats=size, **tail)
    test = {"n_test": n, "loss_range": c, "delta": delta, "held_out_risk": share * c}
    uniform = UniformStabilityInputs(uniform_stability=size, **tail)
    left = {"leave_one_out_risk": share * c, **tail}
    code = CompressionInputs(code_length_bits=10**9, empirical_risk=share * c, **tail)
    cover = CoveringInputs(
        lipschitz=size, norm_bound=1e-30, dimension=10**9, n_modules=99, empirical_risk=0.0, **tail
    )
    results = [
        *(f(x) for f in (pac_bayes_kl_bound, pac_bayes_quadratic_bound, pac_bayes_root_bound)),
        *(f(x, inverse_temperature=1e-6) for f in (catoni_bound, mcallester2013_bound)),
        catoni_bound(x, inverse_temperature=1e3),
        hold_out_kl_bound(HoldOutInputs(**test), predictor="mean"),
        uniform_log_bound(uniform),
        feldman_vondrak_bound(uniform),
        leave_one_out_bound(LeaveOneOutInputs(hypothesis_stability=size, **left)),
        l2_leave_one_out_bound(L2LeaveOneOutInputs(remove_one_out=size, **left)),
        compression_bound(code),
        compression_kl_bound(code),
        covering_bound(cover),
    ]
    if n > 1:
        bernstein = BernsteinHoldOutInputs(sample_variance=share * (c / 2) ** 2, **test)
        results.append(empirical_bernstein_bound(bernstein, predictor="mean"))
    for result in results:
        assert not np.isnan(result.gap), result.bound
        assert result.gap >= 0, result.bound
        assert result.risk is None or result.risk >= result.empirical_risk


@given(n=ns, rho=sizes, mu=st.sampled_from([-1.0, 0.0, 1e-300, 1.0, 1e150]))
def test_stabilities_at_the_ends(n, rho, mu) -> None:
    results = [
        dropout_stability(
            DropoutCurvatureInputs(
                n_train=n, dropout_rate=0.5, dropout_lipschitz=rho, dropout_min_eig=mu
            )
        ),
        transverse_stability(
            TransverseInputs(n_train=n, lipschitz=rho, transverse_min_eig=mu), both_sides=True
        ),
    ]
    for result in results:
        assert not np.isnan(result.value)
        assert bool(result.applicable) == (mu > 0)
        assert mu > 0 or result.value == np.inf
        assert rho > 0 or mu <= 0 or result.value == 0
    steps = {"smoothness": rho, "largest_step_size": 1e-3, "step_size_sum": 1e6}
    assert not np.isnan(sgd_stability(SgdInputs(n_train=n, lipschitz=rho, **steps)).value)


@given(norm=sizes, rate=st.sampled_from([0.0, 1e-300, 1 - 2**-53]), sigma=magnitudes(-200, 200))
def test_divergences_at_the_ends(norm, rate, sigma) -> None:
    for kl in (masked_factors_kl, masked_update_kl):
        for rescale in (False, True):
            value = kl(norm, rate, sigma, rescale=rescale)
            assert value >= 0
            assert norm > 0 or value < 1e-300


@pytest.mark.parametrize("n", [10**9, 10**15])
def test_the_floors_vanish_with_n(n: int) -> None:
    x = PacBayesInputs(n_train=n, loss_range=1, delta=0.05, empirical_risk=0.0, kl_nats=0.0)
    assert pac_bayes_kl_bound(x).risk < 50 / n
