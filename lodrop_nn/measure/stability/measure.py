"""Stabilities near a solution, without n retrainings."""

from collections.abc import Callable, Sequence

from peft import PeftModel

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.measure.curvature import curvature
from lodrop_nn.measure.evaluation import Batch, count_rows, mean_predictor, trained_parameters
from lodrop_nn.measure.intervals import variance_estimate
from lodrop_nn.measure.stability.convexity import Convexity, strongly_convex
from lodrop_nn.measure.stability.methods import Methods
from lodrop_nn.measure.stability.neighborhood import (
    Neighborhood,
    dense_eigenvalues,
    neighborhood,
)
from lodrop_nn.measure.stability.objective import (
    Objective,
    gradient_norm,
    local_objective,
    with_notes,
)
from lodrop_nn.measure.stability.settings import StabilitySettings
from lodrop_nn.measure.stability.subspace import NegativeCurvature
from lodrop_nn.measure.stability.summary import as_plug_in
from lodrop_theory.records import Estimate, StabilityMeasurement

_RAISES = 4  # of a ridge that was not given, at most


def stability(
    model: PeftModel,
    bank: MaskBank,
    train: Sequence[Batch],
    fresh: Sequence[Batch],
    settings: StabilitySettings,
    *,
    hessian_min_eig: Estimate | None = None,
    hessian_max_eig: Estimate | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> StabilityMeasurement:
    r"""How the minimizer near a trained adapter moves when one example is left out or replaced.

    .. math:: F_S(\theta) = \frac1n \sum_{z \in S} -\ln \pi_\theta(y \mid x)
              + \tau \|\theta - c\|^2 - \langle r, \theta \rangle

    in the trained parameters, masks off, with r such that the solution :math:`\hat\theta` is
    stationary. Leaving an example out divides by n - 1, replacing it by n. With c = 0 this is the
    ridge that the model was trained with, and r is what its optimizer left over. With
    :math:`c = \hat\theta` it is a proximal objective, akin to that which influence functions answer
    for on a network: :math:`\hat\theta` need not be stationary for the risk, as after AdamW with
    masks, and what is measured is the stability *of this local objective, not of the training
    run*. The two centers differ by a linear term, hence not at all in what moves. Every stability
    is a plug-in value, also because the theorems want a mean over training sets and this is one of
    them.

    Methods, each with the loss evaluated anew at the moved parameters except for the last:

    * ``"refit"``: the objective minimized on the neighbors, by coupled replicas of the adapter.
    * ``"newton"``: one Newton step with the exact Hessian on the neighbor.
    * ``"gauss-newton"``: the same with the generalized Gauss-Newton Hessian, for all examples.
    * ``"influence"``: first-order change of the loss along :math:`H^{-1} (g_i - \bar g) / n`.

    Args:
        model: Adapted classifier; it comes back bit by bit as it was.
        bank: The masks of its adapter; they are off.
        train: All training examples, S.
        fresh: Held-out examples.
        settings: What is perturbed and how exactly.
        hessian_min_eig: Smallest eigenvalue of the Hessian of the training risk, where it is known
            already; None computes it.
        hessian_max_eig: The largest one.
        on_step: Called as ``on_step(done, total)``.

    Returns:
        The stabilities by method; what did not work is said in ``objective``.

    Raises:
        ValueError: If there are fewer than 2 training examples or fresh rows, more are to be left
            out than there are, a logit is not finite, the ridge leaves negative curvature, or the
            Jacobian of the rows that are needed at least does not fit ``max_bytes``.

    Source:
        Objective: after Bae, Ng, Lo, Ghassemi and Grosse (2022), arXiv:2209.05364. Their proximal
        Bregman objective replaces the loss of each training example by its Bregman divergence from
        the outputs at the solution, which takes the gradient off in the outputs, and adds a squared
        distance to the solution; it has the Gauss-Newton Hessian there. Here the gradient is taken
        off in the parameters, and the Hessian stays the exact one. Influence: Koh and Liang (2017),
        arXiv:1703.04730. Stabilities: Bousquet and Elisseeff (2002), JMLR 2.

    Example:
        >>> measured = stability(                       # doctest: +SKIP
        ...     model, bank, train, held_out, StabilitySettings()
        ... )
        >>> measured.estimates["newton"].pointwise_stability.value   # doctest: +SKIP
    """
    check_counts(count_rows(train), count_rows(fresh), settings)
    convexity = strongly_convex(model, bank, train)
    n_parameters = sum(p.numel() for p in trained_parameters(model).values())
    smallest, largest = hessian_min_eig, hessian_max_eig
    if n_parameters > settings.dense_up_to and (smallest is None or largest is None):
        ends = curvature(
            model,
            bank,
            train,
            steps=settings.hessian_steps,
            seed=settings.seed,
            level=settings.level,
            with_masks=False,
        )
        smallest, largest = ends.hessian_min_eig, ends.hessian_max_eig
    with mean_predictor(model, bank, [*train, *fresh]):
        near = neighborhood(model, train, fresh, settings)
        if near.curvature.matrix is not None:
            smallest, largest = dense_eigenvalues(near.curvature.matrix)
        assert smallest is not None
        assert largest is not None
        objective, methods = _run(near, settings, smallest, largest, convexity, on_step)
        segment = methods.lipschitz_segment()
        slope = gradient_norm(near, settings)
    variance = variance_estimate(
        near.losses[near.rows.n_train :],
        settings.level,
        "variance of the smoothed loss at fresh rows",
    )
    assert variance is not None  # two fresh rows at least
    return StabilityMeasurement(
        objective=with_notes(objective.text, methods.notes),
        ridge=objective.ridge,
        center=settings.center,
        n_parameters=n_parameters,
        gradient_norm=slope,
        objective_min_eig=objective.min_eig,
        loss_variance=as_plug_in(variance),
        lipschitz_segment=segment,
        trace_gap=methods.trace_gap,
        newton_ratio=methods.ratio("newton"),
        influence_ratio=methods.ratio("influence"),
        estimates=methods.estimates(),
    )


def _run(
    near: Neighborhood,
    settings: StabilitySettings,
    smallest: Estimate,
    largest: Estimate,
    convexity: Convexity,
    on_step: Callable[[int, int], None] | None,
) -> tuple[Objective, Methods]:
    """The methods on the objective; a ridge that was not given is raised where it must be."""
    furthest = 0

    def report(done: int, total: int) -> None:
        nonlocal furthest  # another ridge starts again, the time that has passed does not
        furthest = max(furthest, done)
        if on_step is not None:
            on_step(furthest, total)

    known, least = None, 0.0
    for n_raised in range(_RAISES + 1):
        objective = local_objective(settings, smallest, largest, convexity, least=least)
        methods = Methods(near, settings, objective, report, known)
        try:
            methods.run(pass_over=settings.ridge is not None or n_raised == _RAISES)
            break
        except NegativeCurvature as error:
            # Twice what was lacking, as for the curvature of the whole sample.
            least = 2.0 * (objective.ridge_curvature - error.curvature)
            known = methods.exact.subspace
    return objective, methods


def check_counts(n_train: int, n_fresh: int, settings: StabilitySettings) -> None:
    """Refuse more left-out examples than there are.

    Raises:
        ValueError: If there are too few rows on a side.
    """
    if n_train < 2:
        raise ValueError(f"`train` must hold at least 2 examples, got {n_train}.")
    if n_fresh < 2:
        raise ValueError(
            "`fresh` must hold at least 2 rows, one to replace an example and one to look at, "
            f"got {n_fresh}."
        )
    count = n_train if settings.n_left_out is None else settings.n_left_out
    if count > n_train:
        raise ValueError(f"`n_left_out` must be at most the {n_train} examples, got {count}.")
    if "refit" in settings.methods and settings.n_refits > count:
        raise ValueError(
            f"`n_refits` must be at most the {count} examples that are left out, "
            f"got {settings.n_refits}."
        )
