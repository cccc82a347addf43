"""How many blocks are kept, and which: exact counts, ties and the order of any scores."""

import math
from fractions import Fraction

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bwds import num_kept_blocks, topk_gates
from bwds.counts import kept_count
from bwds.selection import select_blocks

R, C = 5, 3
LARGEST = float(np.finfo(np.float32).max)

each_scope = pytest.mark.parametrize("scope", ["matrix", "column"])


# How many -------------------------------------------------------------------------------------------------------------


def test_number_of_kept_blocks_is_exact_for_decimal_sparsities():
    for thousandths in range(0, 1000, 5):
        for blocks in (1, 2, 3, 7, 10, 20, 33, 100, 192, 576, 1000, 4096, 16384):
            wanted = max(1, math.ceil((1 - Fraction(thousandths, 1000)) * blocks))
            assert num_kept_blocks(blocks, thousandths / 1000) == wanted, (blocks, thousandths)


def test_number_of_kept_blocks_is_exact_for_fractions_of_the_blocks():
    for blocks in range(1, 130):
        for omitted in range(blocks):
            assert num_kept_blocks(blocks, omitted / blocks) == blocks - omitted


def test_number_of_kept_blocks_at_its_limits():
    assert num_kept_blocks(10, 0.7) == 3
    assert num_kept_blocks(10, 0.69) == 4
    assert num_kept_blocks(10, 0.999) == 1
    assert num_kept_blocks(1, 0.5) == 1
    assert num_kept_blocks(100, math.nextafter(1.0, 0.0)) == 1
    assert isinstance(num_kept_blocks(576, 0.5), int)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, math.nan, math.inf])
def test_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}.*\."):
        num_kept_blocks(10, sparsity)
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}.*\."):
        topk_gates(jnp.ones((R, C)), sparsity=sparsity)


@pytest.mark.parametrize("blocks", [0, -1])
def test_a_matrix_without_blocks_is_refused(blocks):
    with pytest.raises(ValueError, match=rf"{blocks}.*\."):
        num_kept_blocks(blocks, 0.5)


@each_scope
@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (12, 48), (24, 36), (128, 128)])
def test_a_traced_sparsity_keeps_as_many_as_a_static_one(grid, scope):
    blocks = grid[0] if scope == "column" else grid[0] * grid[1]
    sparsities = [i / 200 for i in range(200)] + [i / blocks for i in range(min(blocks, 600))]
    traced = jax.jit(jax.vmap(lambda s: kept_count(grid, s, scope)))(jnp.asarray(sparsities, jnp.float32))
    assert traced.tolist() == [num_kept_blocks(blocks, s) for s in sparsities]


_COUNTS = st.integers(1, 100_000) | st.sampled_from([2**k for k in range(21)] + [2**20 - 1])


@hypothesis.given(blocks=_COUNTS, data=st.data())
@hypothesis.example(blocks=10, data=0.7)
@hypothesis.example(blocks=3, data=1 / 3)
@hypothesis.example(blocks=100_000, data=0.999999)
@hypothesis.example(blocks=2**20, data=math.nextafter(1.0, 0.0))
def test_one_rule_for_all_counts_and_sparsities(blocks, data):
    fractions = st.integers(0, blocks - 1).map(lambda omitted: omitted / blocks)
    near = st.tuples(fractions, st.integers(-3, 3)).map(lambda p: min(max(p[0] + p[1] * 2.0**-26, 0.0), 1 - 2.0**-30))
    drawn = st.lists(fractions | near | st.floats(0, 1, exclude_max=True), min_size=8, max_size=8)
    sparsities = [data] * 8 if isinstance(data, float) else data.draw(drawn)
    # As a scalar of JAX; under jit these are the same operations on integers.
    traced = jax.vmap(lambda s: kept_count((blocks, 1), s))(jnp.asarray(sparsities, jnp.float32))
    assert traced.tolist() == [num_kept_blocks(blocks, s) for s in sparsities]
    for s, kept in zip(sparsities, traced.tolist(), strict=True):
        assert np.float32(s) == 1.0 or num_kept_blocks(blocks, np.float32(s)) == kept
    for omitted in {0, blocks // 3, blocks // 2, blocks - 1}:
        assert num_kept_blocks(blocks, omitted / blocks) == blocks - omitted
        # The same holds for the result of a difference in float32.
        assert num_kept_blocks(blocks, np.float32(1) - np.float32((blocks - omitted) / blocks)) == blocks - omitted


def test_numbers_of_numpy_and_jax_count():
    for number in (np.float32, np.float64, jnp.float32, np.asarray, jnp.bfloat16):
        assert num_kept_blocks(np.int64(10), number(0.5)) == 5
        assert num_kept_blocks(jnp.int32(10), number(0.5)) == 5
        assert (topk_gates(jnp.ones((R, C)), sparsity=number(0.5)) != 0).sum() == 8
    assert (topk_gates(np.ones((R, C)), num_kept=jnp.uint8(3)) != 0).sum() == 3


@pytest.mark.usefixtures("unchecked")
def test_what_is_traced_decides_no_shape():
    with pytest.raises(ValueError, match=r"num_blocks is traced; .*\."):
        jax.jit(lambda n: num_kept_blocks(n, 0.5))(3)
    with pytest.raises(ValueError, match=r"for 1048577 blocks.*\."):
        jax.eval_shape(lambda s: kept_count((2**20 + 1, 1), s), jnp.float32(0.5))


# Which blocks ---------------------------------------------------------------------------------------------------------

select = jax.jit(lambda s, k, scope: select_blocks(s, num_kept=k, scope=scope), static_argnames="scope")


def assert_selects(scores, k, scope):
    np.testing.assert_array_equal(select(scores, k, scope), oracle.kept_mask(np.float64(scores), k, scope))


@each_scope
@hypothesis.given(scores=hnp.arrays(np.float32, (R, C), elements=st.integers(-2, 2)), k=st.integers(1, R))
def test_exactly_k_blocks_are_kept_among_many_ties(scope, scores, k):
    assert_selects(scores, k if scope == "column" else 3 * k, scope)


@each_scope
@hypothesis.given(
    scores=hnp.arrays(np.float32, (R, C), elements=st.floats(width=32, allow_nan=False, allow_subnormal=False)),
    k=st.integers(1, R),
)
def test_the_largest_of_any_scores_are_kept(scope, scores, k):
    assert_selects(scores, k, scope)


@each_scope
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -7.5, LARGEST, -LARGEST, -math.inf])
def test_constant_scores_keep_the_first_blocks(value, scope):
    for k in (1, 2, 4, 5):
        assert_selects(np.full((R, C), value, np.float32), k, scope)


@each_scope
def test_zeros_of_both_signs_are_ties(scope):
    scores = np.where(np.arange(R * C).reshape(R, C) % 2, 0.0, -0.0).astype(np.float32)
    for k in (1, 2, 4, 5):
        assert_selects(scores, k, scope)


def test_one_step_of_rounding_is_enough_to_win():
    scores = np.full((R, C), 1.0, np.float32)
    scores[-1, -1] = np.nextafter(np.float32(1), np.float32(2))
    assert_selects(scores, 1, "matrix")
    assert select(scores, 1, "matrix")[-1, -1]
