"""Hypothesis strategies for the inputs of the theorems."""

from hypothesis import strategies as st

from lodrop_theory import CurvatureInputs, TailInputs


def magnitudes(low: float, high: float) -> st.SearchStrategy[float]:
    """Positive floats, uniform over decades rather than over values."""
    exponents = st.floats(low, high, allow_nan=False)
    return exponents.map(lambda e: 10.0**e)


dropout_rates = st.one_of(st.floats(0.0, 1.0, exclude_max=True), magnitudes(-300, -1), st.just(0.0))
counts = st.one_of(st.integers(1, 10**6), st.integers(1, 10**15))
deltas = st.one_of(st.floats(1e-12, 0.999), magnitudes(-300, -1))
scales = magnitudes(-30, 30)
risks = st.floats(0.0, 10.0)
stabilities = st.one_of(st.just(0.0), magnitudes(-30, 10))
eigenvalues = st.one_of(
    st.just(0.0),
    magnitudes(-12, 6),
    magnitudes(-12, 6).map(lambda x: -x),
    st.floats(-5, 5, allow_subnormal=False),
)
penalties = st.one_of(st.just(0.0), magnitudes(-12, 6), st.floats(0, 5, allow_subnormal=False))


@st.composite
def curvatures(draw: st.DrawFn) -> CurvatureInputs:
    return CurvatureInputs(
        n_train=draw(counts),
        dropout_rate=draw(dropout_rates),
        lipschitz=draw(st.one_of(st.just(0.0), scales)),
        hessian_min_eig=draw(eigenvalues),
        penalty=draw(penalties),
    )


@st.composite
def convex_curvatures(draw: st.DrawFn) -> CurvatureInputs:
    """Curvatures whose strong convexity is positive, without cancellation."""
    return CurvatureInputs(
        n_train=draw(counts),
        dropout_rate=draw(dropout_rates),
        lipschitz=draw(scales),
        hessian_min_eig=draw(magnitudes(-12, 6)),
        penalty=draw(penalties),
    )


@st.composite
def tails(draw: st.DrawFn, n_train: object = None) -> TailInputs:
    return TailInputs(
        n_train=draw(counts) if n_train is None else n_train,
        loss_range=draw(scales),
        delta=draw(deltas),
        empirical_risk=draw(st.one_of(st.none(), risks)),
    )
