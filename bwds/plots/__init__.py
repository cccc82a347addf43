"""Figures of the blocks that a model keeps, and of how runs went. They need matplotlib, the extra ``plots``.

A function that draws returns a ``matplotlib.figure.Figure`` without a window: ``figure.savefig("usage.png")``. Figures
of blocks take arrays by the name of the matrix, from a model or from any layers of your own network.

Example:
    ```python
    model = bwds.ModelConfig(vocab_size=1000, hidden_size=128, block_size=32, gate_activation="softplus")
    lm = bwds.language_model(model)
    tokens = jnp.zeros((4, 10), jnp.int32)
    logits, carry, info = lm.apply(lm.init(jax.random.key(0)), tokens, lm.init_carry(4))
    figure = bwds.plots.usage_maps(info.usage, model.block_shape, cell=model.cell)
    ```
"""

from bwds.plots.blocks import kept_map, title_of, usage_by_group, usage_maps
from bwds.plots.figures import file_of, is_available, png_of
from bwds.plots.perplexity import curves

__all__ = [
    "curves",
    "file_of",
    "is_available",
    "kept_map",
    "png_of",
    "title_of",
    "usage_by_group",
    "usage_maps",
]
