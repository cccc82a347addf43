"""Dropout: what it keeps on average, which masks it draws, and when it does nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bwds.dropout import dropout, embedding_dropout, weight_dropout

SHAPE = (16, 12, 64)
KEY = jax.random.key(3)
run = jax.jit(dropout, static_argnames=("rate", "locked"))


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("rate", [0.1, 0.65])
def test_features_are_dropped_at_the_rate_and_the_mean_is_preserved(rate, locked):
    x = jnp.full(SHAPE, 2.0)
    y = np.asarray(run(KEY, x, rate, locked=locked))
    assert y.shape == x.shape
    kept = y != 0
    np.testing.assert_allclose(y[kept], 2.0 / (1.0 - rate), rtol=1e-6)
    draws = SHAPE[0] * SHAPE[2] * (1 if locked else SHAPE[1])
    assert abs(kept.mean() - (1.0 - rate)) < 4.5 * (rate * (1 - rate) / draws) ** 0.5


def test_the_mean_over_keys_is_the_input():
    x = jnp.linspace(-2.0, 3.0, 24).reshape(2, 3, 4)
    many = jax.jit(jax.vmap(lambda key: dropout(key, x, 0.5)))(jax.random.split(KEY, 20_000))
    np.testing.assert_allclose(many.mean(0), x, atol=0.1)


def test_locked_masks_are_constant_over_time_and_differ_between_rows_and_features():
    kept = np.asarray(run(KEY, jnp.ones(SHAPE), 0.5, locked=True)) != 0
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1], SHAPE))
    assert not np.array_equal(kept[0], kept[1])
    assert 0 < kept[0, 0].sum() < SHAPE[2]


def test_masks_that_are_not_locked_change_over_time():
    kept = np.asarray(run(KEY, jnp.ones(SHAPE), 0.5)) != 0
    assert not np.array_equal(kept[:, 0], kept[:, 1])


@pytest.mark.parametrize(("dtype", "locked"), [("float32", False), ("bfloat16", True)])
def test_without_a_rate_or_without_a_key_nothing_happens(dtype, locked):
    x = jnp.linspace(-1.0, 1.0, 16 * 12 * 64).reshape(SHAPE).astype(dtype)
    for y in (dropout(KEY, x, 0.0, locked=locked), dropout(None, x, 0.5, locked=locked)):
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)


def test_a_key_decides_the_mask():
    x = jnp.ones(SHAPE)
    np.testing.assert_array_equal(run(KEY, x, 0.5), run(KEY, x, 0.5))
    assert not np.array_equal(run(KEY, x, 0.5), run(jax.random.key(4), x, 0.5))


@pytest.mark.parametrize("locked", [False, True])
def test_the_gradient_uses_the_mask_of_the_value(locked):
    x = jnp.linspace(-1.0, 1.0, 16 * 12 * 64).reshape(SHAPE)
    y, vjp = jax.vjp(functools.partial(run, KEY, rate=0.4, locked=locked), x)
    np.testing.assert_allclose(vjp(x)[0], y, rtol=1e-6)


def test_dtype_is_kept_and_dropped_features_are_zero_even_where_the_input_is_not_finite():
    x = jnp.full(SHAPE, jnp.inf, jnp.bfloat16)
    y = run(KEY, x, 0.5)
    assert y.dtype == jnp.bfloat16
    assert not np.isnan(np.asarray(y, np.float32)).any()


@pytest.mark.parametrize("rate", [1.0, -0.1, 2.0, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=rf"{rate}.*\."):
        dropout(KEY, jnp.ones((1, 2, 3)), rate)
    with pytest.raises(ValueError, match=rf"{rate}.*\."):
        embedding_dropout(KEY, jnp.ones((1, 2, 3)), jnp.zeros((1, 2), jnp.int32), rate, vocab_size=5)
    with pytest.raises(ValueError, match=rf"{rate}.*\."):
        weight_dropout(None, jnp.ones((2, 3)), rate)


# Tokens and weights ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=5, max_size=5), min_size=1, max_size=4),
    st.sampled_from([0.3, 0.6]),
    st.integers(0, 2**31 - 1),
)
def test_a_word_is_dropped_everywhere_or_nowhere(tokens, rate, seed):
    tokens = jnp.asarray(tokens, jnp.int32)
    table = np.random.default_rng(seed).normal(size=(7, 3)).astype(np.float32)
    y = embedding_dropout(jax.random.key(seed), jnp.asarray(table)[tokens], tokens, rate, vocab_size=7)
    # The text does not decide which tokens are left, so all seven in a row show it.
    shown = embedding_dropout(
        jax.random.key(seed), jnp.ones((1, 7, 1)), jnp.arange(7, dtype=jnp.int32)[None], rate, vocab_size=7
    )
    kept = np.asarray(shown)[0] != 0
    np.testing.assert_allclose(y, (np.where(kept, table, 0.0) / (1 - rate))[np.asarray(tokens)], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_words_are_dropped_at_the_rate(rate):
    words = jnp.arange(5000, dtype=jnp.int32)[None]
    y = embedding_dropout(KEY, jnp.full((1, 5000, 2), 3.0, jnp.bfloat16), words, rate, vocab_size=5000)
    kept = np.asarray(y, np.float32)[0, :, 0] != 0
    assert y.dtype == jnp.bfloat16
    assert abs(kept.mean() - (1 - rate)) < 4.5 * (rate * (1 - rate) / 5000) ** 0.5


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_weights_are_dropped_one_by_one_at_the_rate_and_the_mean_is_preserved(rate):
    w = jnp.linspace(1.0, 2.0, 96 * 80).reshape(96, 80)
    y = np.asarray(weight_dropout(KEY, w, rate))
    kept = y != 0
    np.testing.assert_allclose(y, np.where(kept, w / (1 - rate), 0), rtol=1e-6)
    for share, draws in (
        (kept.mean(), 96 * 80),
        *((row.mean(), 80) for row in kept),
        *((c.mean(), 96) for c in kept.T),
    ):
        assert abs(share - (1 - rate)) < 5 * (rate * (1 - rate) / draws) ** 0.5


def test_without_a_rate_or_without_a_key_words_and_weights_stay():
    x, tokens = jnp.ones((2, 3, 4)), jnp.zeros((2, 3), jnp.int32)
    assert embedding_dropout(None, x, tokens, 0.5, vocab_size=9) is x
    assert embedding_dropout(KEY, x, tokens, 0.0, vocab_size=9) is x
    assert weight_dropout(None, x, 0.5) is x
    assert weight_dropout(KEY, x, 0.0) is x
