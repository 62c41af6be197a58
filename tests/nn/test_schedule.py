"""Schedules of the dropout rate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lodrop_nn.masks import MaskBank, MaskSettings
from lodrop_nn.train.schedule import PiecewiseLinear, linear_decay, linear_warmup

unit = st.floats(0.0, 1.0)
schedules = st.lists(unit, min_size=1, max_size=4, unique=True).flatmap(
    lambda fractions: st.tuples(
        st.just(sorted(fractions)),
        st.lists(unit, min_size=len(fractions), max_size=len(fractions)),
    ).map(lambda pair: PiecewiseLinear(tuple(zip(*pair, strict=True))))
)


@given(schedules, unit)
def test_a_schedule_stays_between_its_points_and_meets_them(
    schedule: PiecewiseLinear, fraction: float
) -> None:
    levels = [level for _, level in schedule.points]
    assert min(levels) - 1e-12 <= schedule(fraction) <= max(levels) + 1e-12
    assert 0.0 <= schedule(fraction) <= 1.0
    for where, level in schedule.points:
        assert schedule(where) == level
    assert schedule(0.0) == pytest.approx(levels[0]) or schedule.points[0][0] == 0.0
    assert schedule(1.0) == levels[-1]


@given(st.floats(0.01, 0.99), unit)
def test_warmup_rises_and_decay_falls_in_mirror_image(share: float, fraction: float) -> None:
    up, down = linear_warmup(share), linear_decay(1.0 - share)
    assert up(fraction) == pytest.approx(min(fraction / share, 1.0), abs=1e-12)
    assert down(1.0 - fraction) == pytest.approx(up(fraction), abs=1e-9)


@pytest.mark.parametrize(
    "points",
    [
        (),
        ((0.0, 1.5),),
        ((0.5, 1.0), (0.5, 0.0)),
        ((0.0, math.nan),),
        ((-0.1, 1.0),),
        ((0.0, 1.0, 2.0),),
        [(0.0, 1.0)],
        "ab",
    ],
)
def test_points_that_define_no_schedule_are_refused(points: tuple) -> None:
    with pytest.raises(ValueError, match="`points` must be a tuple of pairs of numbers in"):
        PiecewiseLinear(points)


def test_arguments_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`fraction` must be in \[0, 1\], got nan"):
        linear_warmup(0.5)(math.nan)
    with pytest.raises(ValueError, match=r"`until` must be in \(0, 1\], got 0.0"):
        linear_warmup(0.0)
    with pytest.raises(ValueError, match=r"`until` must be in \(0, 1\], got 'a'"):
        linear_warmup("a")
    with pytest.raises(ValueError, match=r"`after` must be in \[0, 1\), got 1.0"):
        linear_decay(1.0)


def kept(bank: MaskBank, schedule: PiecewiseLinear, fraction: float) -> torch.Tensor:
    """The factors of one pass of a plain loop."""
    bank.rate_multiplier = schedule(fraction)
    bank.begin_pass(0, True, (torch.ones(1, 1),), {})
    columns, _ = bank.masks(
        0, training=True, n_rows=1, device=torch.device("cpu"), dtype=torch.float32
    )
    bank.end_pass(0)
    return columns


def test_a_plain_loop_schedules_the_rates() -> None:
    """Kept coordinates are divided by their probability at every rate: the mean stays put."""
    bank = MaskBank(MaskSettings(0.5, seed=0))
    bank.register("layer", in_features=20_000, out_features=1)
    schedule = linear_warmup(0.5)
    for fraction, rate in ((0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (1.0, 0.5)):
        columns = kept(bank, schedule, fraction)
        assert float((columns == 0).double().mean()) == pytest.approx(rate, abs=0.02)
        assert float(columns.max()) == pytest.approx(1 / (1 - rate))
        assert float(columns.double().mean()) == pytest.approx(1.0, abs=0.04)


def test_masks_that_are_not_rescaled_refuse_a_schedule() -> None:
    bank = MaskBank(MaskSettings(0.5, rescale=False))
    bank.register("layer", in_features=3, out_features=2)
    with pytest.raises(ValueError, match="must stay 1 for masks that are not rescaled"):
        bank.rate_multiplier = linear_warmup(0.5)(0.1)
