"""The search for the largest scores: plain and as kernels, against a stable sort."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pallas_kernels import largest
from pallas_kernels.topk import search, tpu, triton

pytestmark = pytest.mark.optimized

SEARCHES = {
    "here": largest,
    "all steps": functools.partial(search.plain, early=False),
    "tpu": functools.partial(tpu.largest, interpret=True),
    "cuda": functools.partial(triton.largest, interpret=True),
}
each_search = pytest.mark.parametrize("search", SEARCHES)


def expected(scores, k):
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, order, True, axis=-1)
    return mask


@each_search
@hypothesis.given(
    scores=hnp.arrays(
        np.float32,
        # Few shapes, as each of them is compiled.
        st.sampled_from([(1, 1), (1, 150), (2, 128), (4, 9), (9, 33)]),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf]),
            st.floats(width=32, allow_nan=False, allow_subnormal=False),
        ),
    ),
    data=st.data(),
)
def test_as_a_stable_sort(search, scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    np.testing.assert_array_equal(jax.jit(SEARCHES[search])(scores, jnp.int32(k)), expected(scores, k))


@each_search
@pytest.mark.parametrize(("rows", "n"), [(1, 576), (70, 576), (3, 4096), (300, 1000)])
def test_sizes_of_models(search, rows, n):
    scores = np.random.default_rng(n).normal(size=(rows, n)).astype(np.float32).round(2)
    np.testing.assert_array_equal(jax.jit(SEARCHES[search])(scores, jnp.int32(n // 4)), expected(scores, n // 4))


def test_rows_of_more_than_one_tile(monkeypatch):
    monkeypatch.setattr(tpu, "TILE_BYTES", 8 * 128 * 4)
    scores = np.random.default_rng(0).normal(size=(20, 100)).astype(np.float32)
    actual = tpu.largest(scores, jnp.int32(7), interpret=True)
    np.testing.assert_array_equal(actual, expected(scores, 7))


@pytest.mark.parametrize(("decimals", "most"), [(None, 28), (1, 32 + 12)])
def test_the_search_ends_when_the_last_row_has_found_its_scores(decimals, most):
    """Without ties it ends long before 32 halvings and has none to settle; with ties it takes all steps of both."""
    scores = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)
    scores = scores if decimals is None else scores.round(decimals)
    keys = search.sortable(jnp.asarray(scores))
    counted = []

    def count(mask):
        counted.append(mask)
        return mask.sum(1, keepdims=True, dtype=jnp.int32)

    index = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    with jax.disable_jit():
        mask = search.search(keys, index, jnp.zeros((3, 1), jnp.int32), count, 500, 2000, early=True)
    np.testing.assert_array_equal(mask, expected(scores, 500))
    # One more count says whether there are ties.
    assert len(counted) <= most + 1
    if decimals is not None:
        assert len(counted) > 32


@pytest.mark.parametrize(("n", "k"), [(4096, 1024), (4096, 410), (576, 288)])
def test_guesses_take_few_counts(n, k):
    """Normal scores take some 7, and ties two more; bisection takes 11 to 18."""
    counts = []
    for seed in range(8):
        scores = np.random.default_rng(seed).normal(size=(1, n)).astype(np.float32)
        counted = []

        def count(mask, counted=counted):
            counted.append(mask)
            return mask.sum(1, keepdims=True, dtype=jnp.int32)

        def extremes(keys):
            return keys.min(1, keepdims=True), keys.max(1, keepdims=True)

        keys = search.sortable(jnp.asarray(scores))
        index = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 1)
        with jax.disable_jit():
            mask = search.search(keys, index, jnp.zeros((1, 1), jnp.int32), count, k, n, early=True, extremes=extremes)
        np.testing.assert_array_equal(mask, expected(scores, k))
        counts.append(len(counted))
    assert np.mean(counts) <= 9 + 2
    assert max(counts) < 20


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 200])
@pytest.mark.parametrize("n", [1, 33, 576, 4096, search.MAX_SCORES, search.MAX_SCORES + 1])
def test_on_a_gpu(rows, n):
    scores = np.random.default_rng(n).normal(size=(rows, n)).astype(np.float32).round(3)
    for k in {1, (n + 1) // 2, n}:
        np.testing.assert_array_equal(largest(scores, k), expected(scores, k))


def test_under_vmap_with_one_k_and_with_many():
    scores = np.random.default_rng(0).normal(size=(4, 3, 20)).astype(np.float32)
    one = jax.vmap(lambda s: largest(s, 5), in_axes=1, out_axes=1)(scores)
    np.testing.assert_array_equal(one, expected(scores, 5))
    many = jax.vmap(largest)(scores, jnp.array([1, 5, 9, 20]))
    np.testing.assert_array_equal(many, [expected(s, k) for s, k in zip(scores, (1, 5, 9, 20), strict=True)])
    shared = jax.vmap(largest, (None, 0))(scores[0], jnp.array([2, 3]))
    np.testing.assert_array_equal(shared, [expected(scores[0], 2), expected(scores[0], 3)])


def test_the_choice_has_no_gradient():
    scores = jnp.arange(6.0)[None]
    np.testing.assert_array_equal(jax.grad(lambda s: (s * largest(s, 2)).sum())(scores), expected(scores, 2))


def test_no_rows_and_inside_of_shard_map():
    assert largest(jnp.zeros((0, 5)), 2).shape == (0, 5)
    scores = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda s: largest(s, 5), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(mapped)(scores), expected(scores, 5))


def test_a_k_of_its_own_on_every_device():
    scores = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(
        lambda s, k: largest(s, k[0])[None], mesh=mesh, in_specs=(jax.sharding.PartitionSpec(), spec), out_specs=spec
    )
    np.testing.assert_array_equal(jax.jit(mapped)(scores, jnp.array([3, 7])), [expected(scores, k) for k in (3, 7)])


def test_where_numbers_of_python_have_64_bits():
    scores = np.random.default_rng(0).normal(size=(4, 20)).astype(np.float32)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(largest(scores, jnp.int32(5)), expected(scores, 5))
