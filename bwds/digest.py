"""One number that stands for all parameters of a model."""

import hashlib
from typing import Any

import jax
import numpy as np


def digest(tree: Any) -> str:
    """SHA-256 of all arrays of a tree in path order: path, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    for path, leaf in sorted(leaves, key=lambda item: item[0]):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        # As bytes, because hashlib does not take arrays of bfloat16.
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
