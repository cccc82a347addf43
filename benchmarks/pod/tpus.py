"""Published figures of TPU chips, from the pages of Google Cloud's documentation named in ``SOURCES``.

Where two versions of a page differ, the lower figure stands here: for v6e they give 800 and 896 GB/s of interconnect,
both ways. The pages write memory in GB but mean GiB: for v5e they give 16, and the compiler refuses programs larger
than 15.75 GiB.
"""

from typing import NamedTuple

SOURCES = {
    "v5e": "https://cloud.google.com/tpu/docs/v5e",
    "v5p": "https://cloud.google.com/tpu/docs/v5p",
    "v6e": "https://cloud.google.com/tpu/docs/v6e",
}


class Chip(NamedTuple):
    """One chip.

    Attributes:
        flops: floating-point operations a second in bfloat16, which is what a product of float32 numbers uses by
            default as well, in one pass.
        hbm: bytes of memory.
        hbm_bandwidth: bytes a second from and to it.
        interconnect: bytes a second that it can send over all its links to other chips of the slice. At the same time
            it can receive as many.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    interconnect: float


GIB = 2**30
CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology, like v5e:16x16.

    Raises:
        ValueError: there are no figures of such a chip here.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        raise ValueError(f"topology is {topology!r}; it must be a chip, {', '.join(CHIPS)}, and a shape: v5e:16x16.")
    return CHIPS[name]
