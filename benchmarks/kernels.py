"""The block-sparse product against the dense one.

    python benchmarks/kernels.py [decode] [batched] [--output FILE] [--implementation NAME] [--hidden 1536 4096]
                                 [--sparsity 0.5 0.75 0.9] [--dtype float32]

decode: products of 1, 4 and 16 rows, [H] -> [4H]; given the gates (with the indexing that needs) and from the input on
(scores, selection and product: what a layer pays). Weights are block-major. The bound is the bytes of the kept blocks
over the bandwidth of a large copy.

batched: value and all three gradients for 64 and 2240 rows, against value and both gradients of the dense product. The
bound is dense's FLOPs at the measured rate of a large matmul.
"""

import argparse

import jax
import jax.numpy as jnp
from common import Results, copy_bandwidth, matmul_rate, time_in_turns

from bwds import block_sparse_matmul, to_block_major, topk_gates
from bwds.gating import gate_scores, init_gate


def arrays(rows, h, block, dtype):
    k, n = h, 4 * h
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (rows, k), dtype)
    w = jax.random.normal(keys[1], (k, n), dtype) * k**-0.5
    dy = jax.random.normal(keys[2], (rows, n), dtype)
    gate = init_gate(keys[3], k, (k // block) * (n // block))
    return x, w, dy, gate


def decode(results, args):
    bandwidth = copy_bandwidth()
    results.write("copy", bytes_per_second=bandwidth)
    for h in args.hidden:
        for rows in (1, 4, 16):
            x, w, _, gate = arrays(rows, h, args.block, args.dtype)
            blocks = jax.block_until_ready(to_block_major(w, (args.block, args.block)))
            grid = (h // args.block, 4 * h // args.block)

            @jax.jit
            def dense(x, w):
                return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(x.dtype)

            @jax.jit
            def product(x, w, gates):
                return block_sparse_matmul(x, w, gates, implementation=args.implementation)

            for sparsity in args.sparsity:

                @jax.jit
                def layer(x, w, gate, sparsity=sparsity, grid=grid):
                    gates = topk_gates(gate_scores(gate, x, grid), sparsity=sparsity)
                    return block_sparse_matmul(x, w, gates, implementation=args.implementation)

                gates = topk_gates(gate_scores(gate, x, grid), sparsity=sparsity)
                times = time_in_turns(
                    {
                        "dense": lambda x=x, w=w: dense(x, w),
                        "product": lambda x=x, blocks=blocks, gates=gates: product(x, blocks, gates),
                        "layer": lambda x=x, blocks=blocks, gate=gate: layer(x, blocks, gate),
                    }
                )
                read = int((gates != 0).any(0).sum()) * args.block**2 * w.dtype.itemsize
                results.write(
                    "decode",
                    rows=rows,
                    hidden=h,
                    block=args.block,
                    dtype=str(w.dtype),
                    implementation=args.implementation or "default",
                    sparsity=sparsity,
                    share_read=read / w.nbytes,
                    **{f"{name}_us": t.median * 1e6 for name, t in times.items()},
                    **{f"{name}_quartiles_us": [round(q * 1e6, 1) for q in t] for name, t in times.items()},
                    speedup_product=times["dense"].median / times["product"].median,
                    speedup_layer=times["dense"].median / times["layer"].median,
                    bound_us=read / bandwidth * 1e6,
                )


def batched(results, args):
    rate = matmul_rate(dtype=args.dtype)
    results.write("matmul", flops_per_second=rate)
    cases = [(64, 256, 32), (2240, 256, 32)] + [(rows, h, args.block) for h in args.hidden for rows in (64, 2240)]
    for rows, h, block in cases:
        x, w, dy, gate = arrays(rows, h, block, args.dtype)
        gates = topk_gates(gate_scores(gate, x, (h // block, 4 * h // block)), sparsity=0.5)

        @jax.jit
        def dense(x, w, dy):
            y, pull = jax.vjp(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32).astype(x.dtype), x, w)
            return y, pull(dy)

        @jax.jit
        def sparse(x, w, gates, dy):
            y, pull = jax.vjp(
                lambda *operands: block_sparse_matmul(*operands, implementation=args.implementation), x, w, gates
            )
            return y, pull(dy)

        times = time_in_turns(
            {
                "dense": lambda x=x, w=w, dy=dy: dense(x, w, dy),
                "sparse": lambda x=x, w=w, gates=gates, dy=dy: sparse(x, w, gates, dy),
            },
            turns=9,
        )
        results.write(
            "batched",
            rows=rows,
            hidden=h,
            block=block,
            dtype=str(w.dtype),
            implementation=args.implementation or "default",
            **{f"{name}_us": t.median * 1e6 for name, t in times.items()},
            **{f"{name}_quartiles_us": [round(q * 1e6, 1) for q in t] for name, t in times.items()},
            sparse_over_dense=times["sparse"].median / times["dense"].median,
            bound_us=6 * rows * w.size / rate * 1e6,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="decode, batched; both if none is named")
    parser.add_argument("--output", help="JSONL file that results are appended to")
    parser.add_argument("--implementation", help="of the block-sparse product; default: the best one here")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1536], help="H of products [H] -> [4H]")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--block", type=int, default=128, help="rows and columns of a block")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    unknown = set(args.parts) - {"decode", "batched"}
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose decode, batched or both")
    results = Results(args.output)
    for part in args.parts or ("decode", "batched"):
        {"decode": decode, "batched": batched}[part](results, args)


if __name__ == "__main__":
    main()
