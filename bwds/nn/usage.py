"""How often each group of inputs uses each block."""

import jax
import jax.numpy as jnp

from bwds.arguments import as_array
from bwds.array_types import Array, Float, Int, Whole
from bwds.checks import count, require


def usage_by_label(gates: Float[Array, "N R C"], labels: Int[Array, " N"], num_labels: Whole) -> Float[Array, "G R C"]:
    """For each label, the share of its inputs that keep each block; NaN for a label that no input has.

    Example:
        ```python
        gates = bwds.topk_gates(jax.random.normal(jax.random.key(0), (100, 4, 4)), sparsity=0.5)
        used = bwds.nn.usage_by_label(gates, jnp.arange(100) % 2, 2)            # [2, 4, 4]
        ```

    Args:
        gates: [N, R, C], those of N inputs; a block is kept if its gate is not zero.
        labels: [N], whole numbers from 0 to ``num_labels`` - 1, such as the classes of images. An input with another
            label is not counted.
        num_labels: G.

    Returns:
        Shares [G, R, C], float32.

    Raises:
        ValueError: the shapes do not fit together, or labels are no whole numbers.
    """
    gates, labels, num_labels = as_array("gates", gates), as_array("labels", labels), count("num_labels", num_labels)
    require(
        gates.ndim == 3 and labels.shape == gates.shape[:1] and jnp.issubdtype(labels.dtype, jnp.integer),
        f"gates have shape {gates.shape}, labels shape {labels.shape} and dtype {labels.dtype}; they must be [N, R, C] "
        "and [N], of whole numbers.",
    )
    member = jax.nn.one_hot(labels, num_labels)
    total = jnp.einsum("ng,nrc->grc", member, (gates != 0).astype(jnp.float32))
    return total / member.sum(axis=0)[:, None, None]
