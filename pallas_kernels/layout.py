"""Two layouts of a weight: row-major [K, N], and block-major, where each block is one contiguous piece of memory."""

from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from pallas_kernels.explicit_axes import spec_of, takes_explicit_axes


def block_shape(w, gates) -> tuple[int, int]:
    """(K/R, N/C) of a weight in either layout, for gates [b, R, C]."""
    _, num_r, num_c = gates.shape
    return w.shape[2:] if w.ndim == 4 else (w.shape[0] // num_r, w.shape[1] // num_c)


@takes_explicit_axes(lambda w, block_shape: PartitionSpec(*tuple(spec_of(w))[::-1], None, None))
def to_block_major(w: Shaped[Array, "K N"], block_shape: tuple[int, int]) -> Shaped[Array, "C R bk bn"]:
    """A weight [K, N] laid out block by block, [C, R, K/R, N/C], with column blocks outermost.

    Example:
        ```python
        blocks = to_block_major(jnp.ones((256, 512)), (64, 64))                 # [8, 4, 64, 64]
        y = block_sparse_matmul(jnp.ones((3, 256)), blocks, jnp.ones((3, 4, 8)))
        ```

    Args:
        w: weight [K, N] of any dtype.
        block_shape: (K/R, N/C), rows and columns of one block.

    Raises:
        ValueError: ``w`` is no matrix, ``block_shape`` is not two numbers, or the block does not divide ``w``.
    """
    if not hasattr(w, "ndim") or not isinstance(block_shape, tuple | list) or len(block_shape) != 2:
        raise ValueError(
            f"w is a {type(w).__name__} and block_shape is {block_shape!r}; they must be an array [K, N], two numbers."
        )
    if w.ndim != 2:
        raise ValueError(f"w has shape {w.shape}; a block-major layout is made from a matrix [K, N].")
    (k, n), (bk, bn) = w.shape, block_shape
    if not 1 <= bk <= k or not 1 <= bn <= n or k % bk or n % bn:
        raise ValueError(f"block_shape {block_shape} does not divide w of shape {w.shape}; choose one that does.")
    return w.reshape(k // bk, bk, n // bn, bn).transpose(2, 0, 1, 3)


@takes_explicit_axes(lambda w: PartitionSpec(*tuple(spec_of(w))[1::-1]))
def from_block_major(w: Shaped[Array, "C R bk bn"]) -> Shaped[Array, "K N"]:
    """The weight [K, N] of a block-major ``w`` [C, R, K/R, N/C] of any dtype: the inverse of ``to_block_major``.

    Example:
        ```python
        w = jnp.arange(256.0 * 512).reshape(256, 512)
        assert (from_block_major(to_block_major(w, (64, 64))) == w).all()
        ```

    Raises:
        ValueError: ``w`` does not have four dimensions.
    """
    if not hasattr(w, "ndim"):
        raise ValueError(f"w is a {type(w).__name__}; it must be an array [C, R, K/R, N/C].")
    if w.ndim != 4:
        raise ValueError(f"w has shape {w.shape}; a block-major weight has four dimensions [C, R, K/R, N/C].")
    c, r, bk, bn = w.shape
    return w.transpose(1, 2, 0, 3).reshape(r * bk, c * bn)
