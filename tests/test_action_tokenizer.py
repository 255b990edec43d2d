"""Actions to tokens and back: within half a bin, without bias, every bin in use."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_qsft.policies.action_tokenizer import ActionTokenizer, TokenizerConfig

Actions = NDArray[np.float32]

FULL = {"low_quantile": 0.0, "high_quantile": 1.0}

columns = st.lists(st.integers(-1000, 1000), min_size=1, max_size=60).map(
    lambda values: np.asarray(values, np.float32)[:, None] / 100
)
configs = st.builds(
    TokenizerConfig,
    bins=st.integers(2, 30),
    spacing=st.sampled_from(["uniform", "quantile"]),
    low_quantile=st.sampled_from([0.0, 0.01, 0.2]),
    high_quantile=st.sampled_from([1.0, 0.99, 0.7]),
    discrete_values=st.integers(1, 3),
)


def column(*values: float) -> Actions:
    return np.asarray(values, np.float32)[:, None]


def uniform_tokenizer(bins: int, **settings: float) -> ActionTokenizer:
    """`bins` equal bins over [-1, 1]."""
    return ActionTokenizer.fit(
        np.linspace(-1, 1, 1001, dtype=np.float32)[:, None],
        TokenizerConfig(bins=bins, **(FULL | settings)),
    )


def test_two_bins_by_hand() -> None:
    tokenizer = uniform_tokenizer(2)
    tokens = tokenizer.encode(column(-1, -0.3, 0.3, 1))
    assert tokens[:, 0].tolist() == [0, 0, 1, 1]
    assert tokenizer.decode(tokens)[:, 0].tolist() == [-0.5, -0.5, 0.5, 0.5]


@settings(deadline=None)
@given(columns, configs)
def test_decoding_stays_within_half_a_bin(actions: Actions, config: TokenizerConfig) -> None:
    tokenizer = ActionTokenizer.fit(actions, config)
    dimension = tokenizer.dimensions[0]
    decoded = tokenizer.decode(tokenizer.encode(actions))
    if dimension.discrete:
        np.testing.assert_array_equal(decoded, actions)
        return
    edges = np.asarray(dimension.edges)
    inside = (actions >= edges[0]) & (actions <= edges[-1])
    half_width = np.diff(edges)[tokenizer.encode(actions)] / 2
    assert (np.abs(decoded - actions) <= half_width + 1e-5)[inside].all()


@settings(deadline=None)
@given(columns, configs)
def test_every_bin_is_reached_by_its_own_centre(actions: Actions, config: TokenizerConfig) -> None:
    tokenizer = ActionTokenizer.fit(actions, config)
    tokens = np.arange(tokenizer.bins[0])[:, None]
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(tokens)), tokens)


@settings(deadline=None)
@given(columns, configs)
def test_tokens_rise_with_the_action(actions: Actions, config: TokenizerConfig) -> None:
    tokens = ActionTokenizer.fit(actions, config).encode(np.sort(actions, axis=0))
    assert (np.diff(tokens[:, 0]) >= 0).all()


@settings(deadline=None)
@given(columns, configs)
def test_json_round_trip_is_the_same_tokenizer(actions: Actions, config: TokenizerConfig) -> None:
    tokenizer = ActionTokenizer.fit(actions, config)
    assert ActionTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json()))) == tokenizer


@pytest.mark.parametrize("bins", [2, 7, 24, 256])
def test_decoding_has_no_bias(bins: int) -> None:
    """The usual mistake, floor to encode and divide by K - 1 to decode, is half a bin off."""
    tokenizer = uniform_tokenizer(bins)
    actions = np.random.default_rng(0).uniform(-1, 1, (100_000, 1)).astype(np.float32)
    errors = tokenizer.decode(tokenizer.encode(actions)) - actions
    bin_width = 2 / bins
    assert abs(errors.mean()) < 0.01 * bin_width
    assert errors.std() == pytest.approx(bin_width / np.sqrt(12), rel=0.02)


def test_quantile_bins_hold_equally_many_actions() -> None:
    actions = np.random.default_rng(0).normal(size=(8000, 1)).astype(np.float32)
    config = TokenizerConfig(bins=8, spacing="quantile", **FULL)
    tokens = ActionTokenizer.fit(actions, config).encode(actions)
    assert np.bincount(tokens[:, 0]).tolist() == [1000] * 8


def test_bounds_are_quantiles_of_the_data() -> None:
    """1% and 99% of 0 ... 100 are 1 and 99."""
    tokenizer = ActionTokenizer.fit(column(*range(101)), TokenizerConfig(bins=2))
    np.testing.assert_allclose(tokenizer.dimensions[0].edges, [1, 50, 99])


def test_value_beyond_the_bounds_gets_the_outermost_bin() -> None:
    tokenizer = uniform_tokenizer(4)
    tokens = tokenizer.encode(column(-50, -1.01, 1.01, 50))
    assert tokens[:, 0].tolist() == [0, 0, 3, 3]


def test_clipped_values_are_counted_per_dimension() -> None:
    ramp = np.linspace(-1, 1, 1001, dtype=np.float32)
    gripper = np.where(ramp > 0, 1, -1).astype(np.float32)
    tokenizer = ActionTokenizer.fit(np.stack([ramp, gripper], 1), TokenizerConfig(bins=4, **FULL))
    actions = np.array([[-1, -1], [1, 1], [1.01, 0.5], [-3, 1], [0, 2]], np.float32)
    assert tokenizer.count_clipped(actions).tolist() == [2, 2]


def test_few_values_are_kept_exactly() -> None:
    actions = np.array([[-1.0, 0.1], [1.0, 0.2], [-1.0, 0.3], [1.0, 0.4]], np.float32)
    tokenizer = ActionTokenizer.fit(actions, TokenizerConfig(bins=5))
    assert tokenizer.discrete == (True, False)
    assert tokenizer.bins == (2, 5)
    decoded = tokenizer.decode(tokenizer.encode(actions))
    np.testing.assert_array_equal(decoded[:, 0], actions[:, 0])


def test_discrete_dimension_takes_the_nearest_value() -> None:
    tokenizer = ActionTokenizer.fit(column(-1, 0, 1), TokenizerConfig())
    assert tokenizer.encode(column(-0.6, -0.4, 0.7, 9))[:, 0].tolist() == [0, 1, 2, 2]


def test_dimension_that_never_changes_has_one_bin() -> None:
    tokenizer = ActionTokenizer.fit(column(0.25, 0.25), TokenizerConfig())
    assert tokenizer.bins == (1,)
    assert tokenizer.decode(tokenizer.encode(column(0.25))).tolist() == [[0.25]]


@pytest.mark.parametrize("spacing", ["uniform", "quantile"])
def test_bounds_that_coincide_give_way_to_the_full_range(spacing: str) -> None:
    """1% and 99% of a nearly constant column are equal."""
    actions = column(*[0.0] * 500, 1.0, 2.0, 3.0, 4.0)
    tokenizer = ActionTokenizer.fit(actions, TokenizerConfig(bins=4, spacing=spacing))
    assert tokenizer.dimensions[0].edges == (0, 1, 2, 3, 4)


def test_quantile_bins_of_repeated_values_are_merged() -> None:
    """Half of the actions are 0: the quantiles 0, 0, 0, 50, 100 leave two bins."""
    actions = column(*[0.0] * 51, *range(1, 51), *range(51, 101))
    config = TokenizerConfig(bins=3, spacing="quantile", **FULL)
    tokenizer = ActionTokenizer.fit(actions, config)
    assert tokenizer.dimensions[0].edges[0] == 0
    assert tokenizer.bins == (2,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="action 1 holds NaN or infinity in dimension 0"):
        ActionTokenizer.fit(column(0, value), TokenizerConfig())
    with pytest.raises(ValueError, match="NaN or infinity"):
        uniform_tokenizer(4).encode(column(0, value))
    with pytest.raises(ValueError, match="NaN or infinity"):
        uniform_tokenizer(4).count_clipped(column(0, value))


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 2, 2)])
def test_actions_to_fit_must_be_a_table(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"non-empty \(N, A\)"):
        ActionTokenizer.fit(np.zeros(shape, np.float32), TokenizerConfig())


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_other_number_of_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"actions must be \(N, 1\)"):
        uniform_tokenizer(4).encode(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"tokens must be \(N, 1\)"):
        uniform_tokenizer(4).decode(np.zeros(shape, np.int64))


@pytest.mark.parametrize("token", [-1, 4])
def test_token_outside_the_bins_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="tokens must lie in"):
        uniform_tokenizer(4).decode(np.array([[0], [token]]))


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"bins": 1}, "bins must be at least 2"),
        ({"low_quantile": 0.9, "high_quantile": 0.1}, "low_quantile and high_quantile"),
        ({"high_quantile": 1.5}, "low_quantile and high_quantile"),
    ],
)
def test_setting_out_of_range_is_refused(setting: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TokenizerConfig(**setting)
