"""Figures of the blocks that a model keeps, and of how runs went. They need matplotlib, the extra ``plots``.

Every function returns a ``matplotlib.figure.Figure``, which belongs to no window: ``figure.savefig("usage.png")``.
Those of blocks take arrays by the name of the matrix: of a model's, or of any layers of your own network.

    logits, carry, info = lm.apply(params, tokens, carry)
    figure = bwds.plots.usage_maps(info.usage, config.block_shape, cell=config.cell)
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
