"""The block-sparse product against jax.lax.ragged_dot given the same work.

    python -m benchmarks.measure.ragged [--hidden 1536] [--block 128] [--few-rows 1 16] [--sparsity 0.75]
                                       [--dtype bfloat16] [--output FILE]

ragged_dot multiplies rows that are sorted by group, and each group has a matrix of its own. Here a group is a block of
the weight, and its rows are the parts of the inputs that keep it: each (row, kept block) is one row of ``K / R``
features. The time of ragged_dot includes sorting these pairs, collecting their inputs and adding up their results by
block column, as the time of the product includes its masks. Both are given the gates.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results, fields
from benchmarks.measure.calls import timed
from benchmarks.measure.kernels import arrays
from bwds import block_sparse_matmul, num_kept_blocks, to_block_major, topk_gates
from bwds.gating import gate_scores


def by_ragged_dot(x, gates, w, *, kept: int):
    """The product of x [B, K], gates [B, R, C] and block-major w [C, R, bk, bn], ``kept`` blocks of each row."""
    (rows, num_r, num_c), (bk, bn) = gates.shape, w.shape[2:]
    by_block = gates.transpose(2, 1, 0).reshape(num_c * num_r, rows)
    # The pairs (block, row), sorted by block: there are rows * kept of them.
    block, row = jnp.nonzero(by_block, size=rows * kept)
    c, r = block // num_r, block % num_r
    parts = x.reshape(rows, num_r, bk)[row, r]
    sizes = (by_block != 0).sum(1, dtype=jnp.int32)
    products = lax.ragged_dot(parts, w.reshape(-1, bk, bn), sizes, preferred_element_type=jnp.float32)
    y = jnp.zeros((rows, num_c, bn), jnp.float32).at[row, c].add(products * by_block[block, row][:, None])
    return y.reshape(rows, -1).astype(x.dtype)


def run(args):
    """All sizes of the arguments."""
    require_positive(args, "hidden", "block", "few_rows")
    for h in args.hidden:
        if h % args.block:
            raise ValueError(f"--hidden {h} is not a multiple of --block {args.block}; choose a block that divides it.")
    results = Results(args.output)
    for h, dtype, rows in itertools.product(args.hidden, args.dtype, args.few_rows):
        grid = h // args.block, 4 * h // args.block
        kept = num_kept_blocks(grid[0] * grid[1], args.sparsity)
        x, w, _, gate = arrays(rows, h, args.block, dtype, None)
        gates = topk_gates(gate_scores(gate, x, grid), sparsity=args.sparsity)
        blocks = to_block_major(w, (args.block, args.block))
        product = jax.jit(lambda x, gates, w: block_sparse_matmul(x, w, gates))
        ragged = jax.jit(lambda x, gates, w, kept=kept: by_ragged_dot(x, gates, w, kept=kept))
        apart = jnp.abs(product(x, gates, blocks) - ragged(x, gates, blocks)).max()
        cases = {"product": (product, (x, gates), [blocks]), "ragged": (ragged, (x, gates), [blocks])}
        times = timed(cases, turns=7)
        results.write(
            "rival",
            rows=rows,
            hidden=h,
            block=args.block,
            dtype=dtype,
            sparsity=args.sparsity,
            apart=float(apart),
            **fields(times),
            product_over_ragged=times["product"].median / times["ragged"].median,
        )


def main():
    run(
        parser(
            __doc__, hidden=[1536], block=128, few_rows=[1, 16], sparsity=0.75, dtype=["bfloat16", "float32"]
        ).parse_args()
    )


if __name__ == "__main__":
    script(main)
