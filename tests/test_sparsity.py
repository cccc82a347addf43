"""Block-diagonal masks against loops, and which sparsities they can have. The schedule is in test_optim.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bwds.sparsity import block_diagonal_mask, diagonal_groups, where_kept

layouts = st.tuples(st.integers(1, 5), st.integers(1, 6), st.sampled_from([(1, 4), (2, 3)]))


@given(layouts)
def test_masks_against_loops(layout):
    size, groups, (sources, parts) = layout
    n = size * groups
    mask = block_diagonal_mask((sources * n, parts * n), n, groups)
    for r in range(sources * n):
        for c in range(parts * n):
            # The place of the block in its tile of H inputs and H outputs decides its group.
            assert mask[r, c] == ((r % n) * groups // n == (c % n) * groups // n)
    assert mask.mean() == pytest.approx(1 / groups)
    assert set(mask.sum(0)) == {sources * size}
    assert set(mask.sum(1)) == {parts * size}


@pytest.mark.parametrize(
    ("num_blocks", "sparsity", "groups"),
    [(12, 0.0, 1), (12, 0.5, 2), (12, 0.6667, 3), (12, 2 / 3, 3), (12, 0.75, 4), (12, 0.9167, 12), (8, 0.75, 4)],
)
def test_groups(num_blocks, sparsity, groups):
    assert diagonal_groups(num_blocks, sparsity) == groups


@pytest.mark.parametrize(
    ("num_blocks", "sparsity", "possible"),
    [
        (12, 0.9, "0, 0.5, 0.6667, 0.75, 0.8333, 0.9167:"),
        (8, 0.9, "0, 0.5, 0.75, 0.875:"),
        (8, 0.6667, "0, 0.5, 0.75, 0.875:"),
        (12, 0.667, "0, 0.5, 0.6667, "),
        (1, 0.5, "1 blocks a side can have 0:"),
    ],
)
def test_never_another_sparsity(num_blocks, sparsity, possible):
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}; .*{possible}"):
        diagonal_groups(num_blocks, sparsity)


@pytest.mark.parametrize("block", [(1, 1), (2, 3), (1, 2)])
def test_where_kept(block):
    rng = np.random.default_rng(0)
    mask = rng.random((3, 4)) < 0.5
    bk, bn = block
    kernel = rng.normal(size=(3 * bk, 4 * bn)).astype(np.float32)
    expected = kernel.copy()
    for i, j in np.ndindex(kernel.shape):
        if not mask[i // bk, j // bn]:
            expected[i, j] = 7.0
    np.testing.assert_array_equal(where_kept(mask, jnp.asarray(kernel), 7.0), expected)
