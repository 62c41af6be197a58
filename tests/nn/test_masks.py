"""The law of the masks, their action on the factors, and the bank without any model."""

import copy
import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear

from lodrop_nn.masks import MaskBank, MaskSettings, iid_masks, masked_update, seeded_generator
from lodrop_nn.masks.balanced import balanced_masks
from lodrop_nn.masks.draw import Coordinates, Draw
from lodrop_nn.masks.passes import ALONE_STREAM, JOINT_STREAM, MEMBER_STREAM, PASS_STREAM
from lodrop_nn.masks.settings import Rate
from lodrop_nn.train.finetune import INITIALIZATION, ORDER

rates = st.floats(0.0, 0.95)
rate_pairs = st.tuples(rates, rates)
seeds = st.integers(0, 2**63)
CPU = torch.device("cpu")
HALF = torch.full((3,), 0.5)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=stream)


def all_masks(n_coordinates: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([False, True], repeat=n_coordinates)))


def probabilities(masks: torch.Tensor, p: float) -> torch.Tensor:
    kept = masks.sum(1).double()
    return (1 - p) ** kept * p ** (masks.shape[1] - kept)


# -- law ------------------------------


# Rare drops are far from normally distributed, which the tolerance of this test is made for.
@given(p=st.just(0.0) | st.floats(0.05, 0.95), seed=seeds)
def test_coordinates_are_kept_with_probability_one_minus_p(p: float, seed: int) -> None:
    masks = iid_masks(40, torch.full((500,), p), seeded_generator(seed)).double()
    deviation = math.sqrt(p * (1 - p))
    assert abs(masks.mean() - (1 - p)) <= 6 * deviation / math.sqrt(masks.numel())
    # Neither coordinates of a mask nor masks of a coordinate hang together.
    for pair in (masks[:, :-1] * masks[:, 1:], masks[:-1] * masks[1:]):
        assert abs(pair.mean() - (1 - p) ** 2) <= 12 * deviation / math.sqrt(pair.numel())


@given(seed=seeds, key=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)))
def test_streams_depend_on_all_bits_of_seed_and_key(seed: int, key: tuple[int, int]) -> None:
    def first(*args: int) -> torch.Tensor:
        return torch.rand(4, generator=seeded_generator(*args))

    here = first(seed, *key)
    assert torch.equal(here, first(seed, *key))
    # torch's own CPU generator would not tell the second from `seed`.
    others = (
        (seed + 1, *key),
        (seed + 2**32, *key),
        (seed, key[0] + 1, key[1]),
        (seed, key[0], key[1] + 1),
    )
    for other in others:
        assert not torch.equal(here, first(*other))


def test_masks_do_not_touch_the_global_generator_when_seeded() -> None:
    before = torch.get_rng_state()
    iid_masks(2, HALF, seeded_generator(0))
    assert torch.equal(before, torch.get_rng_state())


def test_masks_drawn_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        masks = iid_masks(1, HALF, seeded_generator(0))
    weight = torch.ones(3, requires_grad=True)
    (weight * masks).sum().backward()
    assert torch.equal(weight.grad, masks[0].float())


def test_factors_asked_for_in_inference_mode_are_kept_and_can_be_trained_with() -> None:
    place = (torch.device("cpu"), torch.float64)
    for context in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with context():
            draw = Draw(iid_masks(2, HALF), torch.full((3,), 2.0))
            factors = draw.to(*place)
            assert draw.to(*place) is factors
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        (weight * factors).sum().backward()
        assert torch.equal(weight.grad, factors.sum(0))


def test_no_two_streams_of_a_run_are_the_same() -> None:
    """Masks of an ensemble must not depend on the weights that the same seed initialized."""
    from_run = [(INITIALIZATION,), (ORDER,)]
    of_passes = [(PASS_STREAM, i) for i in range(3)] + [(ALONE_STREAM, i, 0) for i in range(3)]
    of_members = [(MEMBER_STREAM, i) for i in range(3)] + [(JOINT_STREAM,)]
    keys = [*from_run, *of_passes, *of_members]
    assert len({seeded_generator(5, *key).initial_seed() for key in keys}) == len(keys)
    # The keys are those in use.
    bank = bank_of((2, 3))
    balanced = balanced_masks(4, HALF.new_full((5,), 0.5), seeded_generator(5, JOINT_STREAM))
    assert torch.equal(bank.draw(4, 5, "balanced"), balanced)


# -- action on the factors ------------------------------


@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 5),
    rate=rate_pairs,
    rescale=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mean_over_all_masks_is_the_mean_update(
    sizes: tuple[int, ...], rate: tuple[float, float], rescale: bool, seed: int
) -> None:
    """Exact enumeration of the 2^(in + out) masks of a layer."""
    rows, tokens, fan_in, fan_out, rank = sizes
    bank = MaskBank(MaskSettings(rate, rescale=rescale))
    bank.register("layer", fan_in, fan_out)
    x = random(rows, tokens, fan_in, seed=seed)
    lora_A, lora_B = random(rank, fan_in, seed=seed + 1), random(fan_out, rank, seed=seed + 2)
    masks = all_masks(fan_in + fan_out)
    n_masks = len(masks)
    factors = Draw(masks, Coordinates.of(bank.layers).kept_factors).to(CPU, torch.float64)
    outputs = masked_update(
        x.repeat(n_masks, 1, 1), lora_A, lora_B, *bank.layers[0].split(factors), 1.0
    ).unflatten(0, (n_masks, rows))
    weights = probabilities(masks[:, :fan_in], rate[0]) * probabilities(masks[:, fan_in:], rate[1])
    mean = torch.einsum("n,nbto->bto", weights, outputs)
    expected = bank.layers[0].mean_factor * linear(linear(x, lora_A), lora_B)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 6),
    tokens=st.lists(st.integers(1, 3), max_size=2),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_each_instance_is_the_update_with_its_own_masked_factors(
    sizes: tuple[int, ...], tokens: list[int], scale: float, seed: int
) -> None:
    n_masks, group, fan_in, fan_out, rank, _ = sizes
    x = random(n_masks * group, *tokens, fan_in, seed=seed)
    lora_A, lora_B = random(rank, fan_in, seed=seed + 1), random(fan_out, rank, seed=seed + 2)
    masks = iid_masks(
        n_masks, torch.full((fan_in + fan_out,), 0.5), seeded_generator(seed)
    ).double()
    columns, rows = masks[:, :fan_in], masks[:, fan_in:]
    outputs = masked_update(x, lora_A, lora_B, columns, rows, scale)
    assert outputs.shape == (*x.shape[:-1], fan_out)
    for i in range(n_masks):
        update = scale * torch.diag(rows[i]) @ lora_B @ lora_A
        update = update @ torch.diag(columns[i])
        mine = slice(i * group, (i + 1) * group)
        torch.testing.assert_close(outputs[mine], x[mine] @ update.T, rtol=1e-9, atol=1e-9)


@given(n_masks=st.integers(2, 5), rows=st.integers(1, 9))
def test_rows_that_do_not_fill_the_instances_are_refused(n_masks: int, rows: int) -> None:
    masks = torch.ones(n_masks, 2)
    factors = torch.ones(1, 2), torch.ones(2, 1)
    # Three tokens: the total may divide although the rows do not.
    x = torch.ones(rows, 3, 2)
    if rows % n_masks == 0:
        masked_update(x, *factors, masks, masks, 1.0)
    else:
        with pytest.raises(ValueError, match=rf"multiple of the {n_masks} masks.*\({rows}, 3, 2\)"):
            masked_update(x, *factors, masks, masks, 1.0)


def test_an_empty_batch_stays_empty() -> None:
    masks = torch.ones(2, 3)
    out = masked_update(torch.ones(0, 4, 3), torch.ones(1, 3), torch.ones(3, 1), masks, masks, 1.0)
    assert out.shape == (0, 4, 3)


# -- settings ------------------------------


@given(rate=rates | rate_pairs, other=rates | rate_pairs, n_masks=st.integers(1, 9))
def test_settings_survive_json(rate: Rate, other: Rate, n_masks: int) -> None:
    settings = MaskSettings(rate, rate_pattern={"v_proj": other}, n_masks=n_masks, seed=3)
    assert MaskSettings(**json.loads(json.dumps(settings.as_json()))) == settings


def test_the_first_pattern_that_matches_the_end_of_a_name_decides() -> None:
    pattern = {"v_proj": 0.1, r"layers\.0\..*": (0.2, 0.3), "proj": 0.4}
    settings = MaskSettings(0.5, rate_pattern=pattern)
    assert settings.rates_of("model.layers.0.v_proj") == (0.1, 0.1)
    assert settings.rates_of("model.layers.0.q_proj") == (0.2, 0.3)
    assert settings.rates_of("model.layers.10.q_proj") == (0.5, 0.5)  # `proj` is no whole name
    assert settings.rates_of("proj") == (0.4, 0.4)


@given(rate=rate_pairs, pattern=rate_pairs, multiplier=st.floats(0.0, 1.0))
def test_layers_and_sides_have_rates_of_their_own(
    rate: tuple[float, float], pattern: tuple[float, float], multiplier: float
) -> None:
    bank = MaskBank(MaskSettings(rate, rate_pattern={"b": pattern}))
    bank.register("a", 3, 2)
    bank.register("b", 1, 4)
    coordinates = Coordinates.of(bank.layers, multiplier)
    expected = [rate[0]] * 3 + [rate[1]] * 2 + [pattern[0]] + [pattern[1]] * 4
    scaled = [multiplier * p for p in expected]
    assert coordinates.rates.tolist() == scaled
    assert coordinates.kept_factors.tolist() == [1 / (1 - p) for p in scaled]
    assert coordinates.layers.tolist() == [0] * 5 + [1] * 5
    assert coordinates.is_row.tolist() == [False] * 3 + [True] * 2 + [False] + [True] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_rate": 1.0}, r"`dropout_rate` must be in \[0, 1\), or a pair .*got 1.0"),
        ({"dropout_rate": (0.5, 1.0)}, r"`dropout_rate`.*\(0.5, 1.0\)"),
        ({"dropout_rate": (0.5,)}, r"`dropout_rate`.*\(0.5,\)"),
        ({"rate_pattern": {"q": 1.5}}, r"`rate_pattern\['q'\]` must be in.*got 1.5"),
        ({"rate_pattern": {"(": 0.5}}, r"`rate_pattern` must have regular expressions.*'\('"),
        ({"rate_pattern": 0.5}, "`rate_pattern` must map patterns.*got 0.5"),
        ({"mask_law": "sobol"}, "`mask_law` must be one of 'iid', 'balanced', .*got 'sobol'"),
        ({"dropout_rate": -0.1}, "`dropout_rate`"),
        ({"dropout_rate": math.nan}, "`dropout_rate`.*nan"),
        ({"dropout_rate": True}, "`dropout_rate`.*True"),
        ({"dropout_rate": "0.5"}, "`dropout_rate`.*'0.5'"),
        ({"n_masks": 0}, "`n_masks` must be a whole number >= 1, got 0"),
        ({"n_masks": 2.0}, "`n_masks`.*2.0"),
        ({"mask_scope": "token"}, "`mask_scope` must be 'batch' or 'example', got 'token'"),
        ({"mask_scope": "example", "n_masks": 2}, "`n_masks` must be 1 when"),
        ({"rescale": None}, "`rescale`.*None"),
        ({"seed": -1}, "`seed` must be a whole number >= 0, got -1"),
        ({"seed": True}, "`seed`.*True"),
    ],
)
def test_settings_outside_their_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskSettings(**{"dropout_rate": 0.5, **options})


# -- bank ------------------------------


def bank_of(*sizes: tuple[int, int], **options: object) -> MaskBank:
    bank = MaskBank(MaskSettings(**{"dropout_rate": 0.5, **options}))
    for i, (fan_in, fan_out) in enumerate(sizes):
        bank.register(f"layer {i}", fan_in, fan_out)
    return bank


layer_sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


@given(sizes=layer_sizes, seed=seeds, n_masks=st.integers(1, 4))
def test_layers_partition_the_columns_of_a_draw(
    sizes: list[tuple[int, int]], seed: int, n_masks: int
) -> None:
    bank = bank_of(*sizes)
    masks = bank.draw(n_masks, seed)
    parts = [part for slot in range(len(sizes)) for part in bank.split(masks, slot)]
    assert [part.shape[1] for part in parts] == [size for pair in sizes for size in pair]
    assert torch.equal(torch.cat(parts, 1), masks)


@given(sizes=layer_sizes, seed=seeds, few=st.integers(1, 4), more=st.integers(0, 4))
def test_a_larger_ensemble_extends_a_smaller_one(
    sizes: list[tuple[int, int]], seed: int, few: int, more: int
) -> None:
    bank = bank_of(*sizes)
    assert torch.equal(bank.draw(few + more, seed)[:few], bank.draw(few, seed))


@given(seed=st.integers(0, 2**31))
def test_training_and_ensemble_never_share_masks(seed: int) -> None:
    bank = bank_of((40, 40), seed=seed)
    members = bank.draw(3, seed)
    for _ in range(3):
        bank.begin_pass(0, True, (), {})
        assert not any(torch.equal(bank.passes.draw.masks[0], member) for member in members)
        bank.end_pass(0)


def serve(bank: MaskBank, *, training: bool) -> torch.Tensor | None:
    """The masks that a layer is given, without their factors."""
    factors = bank.masks(0, training=training, n_rows=4, device=CPU, dtype=torch.float32)
    return None if factors is None else torch.cat(factors, 1) > 0


def test_the_innermost_context_decides_and_errors_restore() -> None:
    bank = bank_of((20, 20), seed=0)
    assert serve(bank, training=False) is None
    with bank.fixed(3, seed=1):
        assert torch.equal(serve(bank, training=False), bank.draw(3, 1))
        assert torch.equal(serve(bank, training=True), bank.draw(3, 1))
        with bank.off():
            assert serve(bank, training=True) is None
            with bank.fixed(2, seed=5):
                assert torch.equal(serve(bank, training=False), bank.draw(2, 5))
        with bank.members(1, 3):
            assert torch.equal(serve(bank, training=False), bank.draw(3, 1)[1:])
        with pytest.raises(KeyError), bank.off():
            raise KeyError
        assert torch.equal(serve(bank, training=False), bank.draw(3, 1))
    assert serve(bank, training=False) is None


def test_a_frozen_bank_trains_the_mean_and_keeps_its_ensembles() -> None:
    bank = bank_of((20, 20), seed=0)
    bank.freeze()
    bank.begin_pass(0, True, (), {})
    assert serve(bank, training=True) is None
    assert bank.passes.n_drawn == 0
    with bank.fixed(2, seed=1):
        assert torch.equal(serve(bank, training=True), bank.draw(2, 1))
    bank.end_pass(0)
    bank.unfreeze()
    bank.begin_pass(0, True, (), {})
    assert serve(bank, training=True) is not None


@pytest.mark.parametrize("in_pass", [True, False])
def test_a_scheduled_rate_reaches_training_masks_only(in_pass: bool) -> None:
    bank = bank_of((200, 200), seed=0)
    members = bank.draw(1, 0)
    bank.rate_multiplier = 0.2
    assert torch.equal(bank.draw(1, 0), members)
    if in_pass:  # else the layer draws for itself
        bank.begin_pass(0, True, (), {})
    factors = bank.masks(0, training=True, n_rows=4, device=CPU, dtype=torch.bfloat16)
    kept = torch.cat(factors, 1)
    assert kept.dtype == torch.float32
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    assert 0.8 < (kept > 0).float().mean() < 0.98


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "x"])
def test_multipliers_outside_their_range_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"`rate_multiplier` must be in \[0, 1\], got"):
        bank_of((2, 2)).rate_multiplier = value
    with pytest.raises(ValueError, match="must stay 1 for masks that are not rescaled"):
        bank_of((2, 2), rescale=False).rate_multiplier = 0.5


def test_one_rate_is_reported_and_several_are_refused() -> None:
    assert bank_of((2, 2)).dropout_rate == 0.5
    with pytest.raises(ValueError, match=r"has several rates, from 0\.1 to 0\.5"):
        _ = bank_of((2, 2), dropout_rate=(0.5, 0.1)).dropout_rate


def test_members_must_lie_among_fixed_masks() -> None:
    bank = bank_of((2, 2))
    with pytest.raises(RuntimeError, match=r"enter `bank.fixed\(\)` first"), bank.members(0, 1):
        pass
    for start, stop in ((-1, 1), (1, 1), (0, 4)):
        with (
            bank.fixed(3),
            pytest.raises(ValueError, match=f"<= 3, got start={start}, stop={stop}"),
            bank.members(start, stop),
        ):
            pass


@pytest.mark.parametrize("options", [{"n_masks": 0}, {"seed": -1}])
def test_fixed_refuses_what_is_outside_the_range(options: dict) -> None:
    with (
        pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"),
        bank_of().fixed(**options),
    ):
        pass


@given(seed=st.none() | st.integers(0, 99))
def test_a_pass_is_drawn_once_by_its_outermost_root(seed: int | None) -> None:
    bank = bank_of((9, 9), seed=seed)
    bank.begin_pass(0, True, (), {})
    first = bank.passes.draw.masks
    bank.begin_pass(2, True, (), {})
    assert torch.equal(serve(bank, training=True), first)
    bank.end_pass(2)
    assert torch.equal(serve(bank, training=True), first)
    bank.end_pass(0)
    assert bank.passes.n_drawn == 1
    bank.begin_pass(2, True, (), {})  # entered further in
    assert bank.passes.n_drawn == 2
    bank.end_pass(2)


def test_a_pass_that_an_interrupt_left_open_is_begun_again() -> None:
    bank = bank_of((9, 9), seed=0)
    bank.begin_pass(0, True, (), {})
    bank.begin_pass(1, True, (), {})  # a keyboard interrupt: no hook ends these
    bank.begin_pass(0, True, (), {})
    assert bank.passes.n_drawn == 2


def test_no_masks_at_rate_zero() -> None:
    bank = bank_of((2, 2), dropout_rate=0.0, n_masks=3)
    bank.begin_pass(0, True, (), {})
    assert serve(bank, training=True) is None
    with bank.fixed(3):
        assert serve(bank, training=True) is None


def test_a_copy_of_a_bank_goes_its_own_way() -> None:
    bank = bank_of((9, 9), seed=0)
    other = copy.deepcopy(bank)
    other.begin_pass(0, True, (), {})
    assert (bank.passes.n_drawn, other.passes.n_drawn) == (0, 1)
    other.register("another", 1, 1)
    other.begin_pass(0, True, (), {})
    assert other.passes.draw.masks.shape[1] == 20
    assert bank.n_coordinates == 18


def test_an_example_scope_needs_a_batch_dimension() -> None:
    bank = bank_of((2, 2), mask_scope="example")
    bank.begin_pass(0, True, (), {"x": torch.tensor(1.0), "inputs_embeds": torch.ones(5, 2)})
    assert len(bank.passes.draw.masks) == 5
    with pytest.raises(ValueError, match="needs a tensor among the model's inputs"):
        bank.begin_pass(0, True, (), {})
