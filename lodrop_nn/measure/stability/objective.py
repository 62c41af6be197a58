"""The objective whose minimizers are compared: its ridge, its curvature, and its name in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lodrop_nn.measure.evaluation import flatten, trained_parameters
from lodrop_nn.measure.stability.convexity import Convexity
from lodrop_nn.measure.stability.neighborhood import Neighborhood
from lodrop_nn.measure.stability.settings import StabilitySettings
from lodrop_theory.records import Estimate

_FLOOR = 1e-3  # smallest curvature of the ridge, as a fraction of the largest of the risk


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The risk on a training set plus a ridge, made stationary at the solution.

    Attributes:
        ridge: tau.
        min_eig: Smallest eigenvalue of its Hessian at the solution.
        text: What it is, in words.
    """

    ridge: float
    min_eig: Estimate
    text: str

    @property
    def ridge_curvature(self) -> float:
        """Curvature mu = 2 tau of the ridge."""
        return 2.0 * self.ridge


def local_objective(
    settings: StabilitySettings,
    smallest: Estimate,
    largest: Estimate,
    convexity: Convexity,
    *,
    least: float = 0.0,
) -> Objective:
    r"""The objective of a measurement.

    Without a given ridge, :math:`2\tau = \max(2\,|\lambda_-|,\ 10^{-3} \lambda_{\max})` with
    :math:`\lambda_-` the negative part of the smallest eigenvalue; the factor 2 leaves room for its
    error. Without some example that may not suffice, for the curvature of an example may be what
    holds the risk up around it: then it is raised.

    Args:
        settings: Its center, and its ridge if one is given.
        smallest: Smallest eigenvalue of the Hessian of the training risk at the solution.
        largest: Largest one.
        convexity: Whether the risk is convex in the trained parameters.
        least: What 2 tau must be at least, where a smaller one, chosen here, did not suffice.

    Raises:
        ValueError: If the ridge leaves a direction in which the objective curves down.
    """
    if settings.ridge is None:
        curvature = max(2.0 * max(-smallest.value, 0.0), _FLOOR * largest.value)
        if curvature <= 0.0:
            raise ValueError(
                "`ridge` must be given where the Hessian of the risk is zero, got None."
            )
        tau = max(curvature, least) / 2.0
        chosen = (
            f", tau = {tau:.3g} chosen by 2 tau = max(2 |negative curvature|, "
            f"{_FLOOR:g} largest curvature)"
        )
        if least > curvature:
            chosen += (
                f" = {curvature:.3g} and raised: less leaves negative curvature where an example "
                "is left out or replaced"
            )
    else:
        tau = settings.ridge
        chosen = f", tau = {tau:.6g} as given"
    if smallest.value + 2.0 * tau <= 0.0:
        raise ValueError(
            f"`ridge` must be above {-smallest.value / 2.0:.3g}, minus half the smallest "
            f"eigenvalue of the risk: the solution is no minimum otherwise; got {tau:.3g}."
        )
    certified = settings.center == "origin" and convexity.is_linear
    where = "the origin" if settings.center == "origin" else "the solution"
    parts = [
        "mean cross-entropy (masks off) plus tau times the squared distance of the trained "
        f"parameters to {where}{chosen}"
    ]
    if settings.center == "origin":
        parts.append(
            "a linear term takes off what gradient is left at the solution (gradient_norm); its "
            "minimizer and that of the plain objective are within gradient_norm / mu where the "
            "objective is mu-strongly convex"
        )
    else:
        parts.append(
            "a linear term takes off the gradient there, so that the solution is its minimizer: "
            "these are stabilities of this local (proximal) objective, not of the training run"
        )
    if certified:
        parts.append(
            f"{2.0 * tau:.3g}-strongly convex everywhere ({convexity.reason}): the uniform "
            "stability 2 rho^2 / (2 tau n) is proved if rho bounds the gradients"
        )
    elif convexity.is_linear:
        parts.append(
            f"strongly convex everywhere ({convexity.reason}), but its center and its linear term "
            "come from the data, so that no uniform stability follows"
        )
    else:
        parts.append(f"strong convexity is not proved ({convexity.reason})")
    return Objective(
        ridge=tau, min_eig=_shifted(smallest, 2.0 * tau, certified), text="; ".join(parts)
    )


def gradient_norm(near: Neighborhood, settings: StabilitySettings) -> Estimate:
    """Norm of the gradient of the objective at the solution, before the linear term if c = 0.

    With the ridge around the solution it is zero by construction.

    Args:
        near: The solution.
        settings: Center and ridge.
    """
    mean = near.curvature.mean_gradient
    if settings.center == "solution":
        taken = float(mean.norm())
        return Estimate(
            value=0.0,
            low=0.0,
            high=0.0,
            n_draws=near.rows.n_train,
            method=f"zero by construction; the linear term takes off one of norm {taken:.3g}",
        )
    assert settings.ridge is not None
    here = flatten(list(trained_parameters(near.model).values()))
    return Estimate(
        value=float((mean + 2.0 * settings.ridge * here).norm()),
        n_draws=near.rows.n_train,
        method="gradient norm of the objective with its ridge, before the linear term",
    )


def with_notes(text: str, notes: Sequence[str]) -> str:
    """The words of an objective with what did not work."""
    return "; ".join([text, *notes])


def _shifted(smallest: Estimate, curvature: float, convex: bool) -> Estimate:
    """The smallest eigenvalue with the ridge; at least that of the ridge if the risk is convex."""
    low, high = smallest.low, smallest.high
    value = smallest.value + curvature
    moved = replace(
        smallest,
        value=value,
        low=None if low is None else low + curvature,
        high=None if high is None else high + curvature,
        method=f"2 tau + {smallest.method}",
    )
    if not convex or high is None:
        return moved
    value = max(value, curvature)
    return Estimate(
        value=value,
        low=curvature,
        high=max(high + curvature, value),
        n_draws=smallest.n_draws,
        method=f"at least 2 tau by convexity; at most 2 tau + {smallest.method}",
    )
