"""The block-sparse product against the dense one.

    python -m benchmarks.measure.kernels [decode] [batched] [--output FILE] [--implementation NAME] [--hidden 1536 4096]
                                        [--sparsity 0.5 0.75 0.9] [--dtype float32 bfloat16] [--gate-rank RANK]
                                        [--rows 64 2240] [--rotate-mib 128] [--devices 1]

decode: products of few rows (--few-rows 1 4 16), [H] -> [4H]. "product" is given its gates and includes the indexing.
"layer" starts from the input, as a model's linear layer does: scores, selection and product. Weights are block-major.
The bound is the bytes of the kept blocks, and for the layer those of the gate too, over the bandwidth of a large copy.
Calls take copies of the weights in turn. There are so many copies that the kept blocks of all of them fill --rotate-mib
at every sparsity: with one weight and the same gates these blocks would stay in a cache, which they never do in a
model. A bfloat16 product is also timed beside the dense one in float32, and a float32 product on a CPU beside NumPy's
BLAS. --devices N shards block columns over N CPU devices, and those of a second dense product; the first dense product
uses all cores as XLA sees fit.

batched: value and all three gradients for --rows rows, against value and both gradients of the dense product. The
bound is dense's FLOPs at the measured rate of a large matmul.

All cases of a width take turns with its dense products. On a GPU or TPU one program makes many calls.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.bounds import copy_bandwidth, matmul_rate
from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results, fields
from benchmarks.measure.calls import timed
from bwds import block_sparse_matmul, num_kept_blocks, to_block_major, topk_gates
from bwds.collectives import MODEL
from bwds.gating import gate_scores, init_gate
from bwds.linear import GateOptions, linear
from bwds.training.allocator import keep_freed_memory
from pallas_kernels.dense import matmul


def arrays(rows, h, block, dtype, gate_rank=None):
    """Random x [rows, H], w [H, 4H], dy [rows, 4H] and gate for blocks of ``block``, all but its bias in ``dtype``."""
    k, n = h, 4 * h
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (rows, k), dtype)
    w = jax.random.normal(keys[1], (k, n), dtype) * k**-0.5
    dy = jax.random.normal(keys[2], (rows, n), dtype)
    gate = init_gate(keys[3], k, (k // block) * (n // block), gate_rank)
    gate = {name: value if name == "bias" else value.astype(dtype) for name, value in gate.items()}
    return x, w, dy, gate


@jax.jit
def dense(x, w):
    """The dense product of a model."""
    return matmul(x, w).astype(x.dtype)


def copied(weights, number):
    """``number`` weights: the given one, and copies of it."""
    return [weights, *(jax.tree.map(lambda w: jnp.array(w, copy=True), weights) for _ in range(number - 1))]


def products(args, options):
    """The product with given gates and, for each sparsity, a model's linear layer: functions of the weights."""

    def product(x, gates, weights):
        return block_sparse_matmul(x, weights["kernel"], gates, implementation=args.implementation)

    def layer(sparsity):
        return lambda x, weights: linear(weights, x, options, sparsity)[0]

    return product, {sparsity: layer(sparsity) for sparsity in args.sparsity}


def on_one_device(args, options, x, w, gate, gates, copies):
    """The timed cases by name: (function, inputs, weights in turn)."""
    product, layers = products(args, options)
    product = jax.jit(product)
    blocks = copied({"kernel": to_block_major(w, (args.block, args.block)), "gate": gate}, copies["product"])
    cases = {"dense": (dense, (x,), copied(w, copies["dense"]))}
    for s, layer in layers.items():
        cases["product", s] = product, (x, gates[s]), blocks
        cases["layer", s] = jax.jit(layer), (x,), blocks
    return cases


def on_several_devices(args, options, x, w, gate, gates, copies):
    """The same with block columns sharded, as in a model: each device has the scores of all blocks."""
    mesh = Mesh(np.array(jax.devices()), (MODEL,))
    if options.grid[1] % args.devices:
        raise ValueError(
            f"{options.grid[1]} block columns do not divide among {args.devices} devices; choose another hidden size."
        )
    columns, output = P(None, None, MODEL), P(None, MODEL)
    spec = {"kernel": P(MODEL), "gate": P()}

    def place(tree, spec):
        return jax.device_put(tree, NamedSharding(mesh, spec))

    def sharded(function, *in_specs):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=output))

    product, layers = products(args, options)
    product = sharded(product, P(), columns, spec)
    everywhere = place(x, P())
    blocks = {"kernel": place(to_block_major(w, (args.block, args.block)), P(MODEL)), "gate": place(gate, P())}
    blocks = copied(blocks, copies["product"])
    cases = {
        "dense": (dense, (x,), copied(w, copies["dense"])),
        "dense_sharded": (sharded(dense, P(), output), (everywhere,), copied(place(w, output), copies["dense"])),
    }
    for s, layer in layers.items():
        cases["product", s] = product, (everywhere, place(gates[s], columns)), blocks
        cases["layer", s] = sharded(layer, P(), spec), (everywhere,), blocks
    return cases


def decode(results, args, dtype):
    """Writes one line per width, number of rows and sparsity: the part "decode"."""
    bandwidth = copy_bandwidth()
    results.write("copy", bytes_per_second=bandwidth)
    for h in args.hidden:
        cases, shares, gate_bytes, copies = {}, {}, 0, {}
        for rows in args.few_rows:
            x, w, _, gate = arrays(rows, h, args.block, dtype, args.gate_rank)
            options = GateOptions((h // args.block, 4 * h // args.block), implementation=args.implementation)
            gates = {s: topk_gates(gate_scores(gate, x, options.grid), sparsity=s) for s in args.sparsity}
            read = {s: int((g != 0).any(0).sum()) * args.block**2 * w.dtype.itemsize for s, g in gates.items()}
            fill = args.rotate_mib * 2**20
            copies[rows] = {
                "product": max(1, math.ceil(fill / min(read.values()))),
                "dense": max(1, math.ceil(fill / w.nbytes)),
            }
            place = on_one_device if args.devices == 1 else on_several_devices
            found = place(args, options, x, w, gate, gates, copies[rows])
            if dtype == "bfloat16":
                wide = x.astype(jnp.float32), w.astype(jnp.float32)
                found["dense_float32"] = dense, wide[:1], copied(wide[1], copies[rows]["dense"])
            elif jax.default_backend() == "cpu":
                # NumPy's BLAS may be faster than XLA.
                numbers = [np.array(w) for _ in range(copies[rows]["dense"])]
                found["dense_blas"] = np.matmul, (np.array(x),), numbers
            cases |= {(rows, name): case for name, case in found.items()}
            shares[rows] = {s: number / w.nbytes for s, number in read.items()}
            gate_bytes = sum(value.nbytes for value in gate.values())
        size = w.nbytes
        times = timed(cases)
        for rows, s in itertools.product(args.few_rows, args.sparsity):
            of_rows = {name: t for (number, name), t in times.items() if number == rows}
            mine = {name: t for name, t in of_rows.items() if isinstance(name, str)}
            mine |= {name: of_rows[name, s] for name in ("product", "layer")}
            over = {
                f"speedup_{name}{suffix}": mine[of].median / mine[name].median
                for of, suffix in (("dense", ""), *((of, f"_over_{of}") for of in ("dense_float32", "dense_blas")))
                if of in mine
                for name in ("product", "layer")
            }
            share = shares[rows][s]
            results.write(
                "decode",
                rows=rows,
                hidden=h,
                block=args.block,
                gate_rank=args.gate_rank,
                dtype=dtype,
                implementation=args.implementation or "default",
                copies=copies[rows]["product"],
                sparsity=s,
                share_read=share,
                **fields(mine),
                **over,
                dense_bound_us=size / bandwidth * 1e6,
                bound_us=share * size / bandwidth * 1e6,
                layer_bound_us=(share * size + gate_bytes) / bandwidth * 1e6,
            )


@jax.jit
def all_of_dense(x, dy, w):
    """Value and both gradients."""
    y, pull = jax.vjp(dense, x, w)
    return y, pull(dy)


def batched(results, args, dtype):
    """Writes one line per width, number of rows and sparsity: the part "batched"."""
    rate = matmul_rate(dtype=dtype)
    results.write("matmul", dtype=dtype, flops_per_second=rate)

    @jax.jit
    def all_of_sparse(x, gates, dy, w):
        y, pull = jax.vjp(
            lambda *operands: block_sparse_matmul(*operands, implementation=args.implementation), x, w, gates
        )
        return y, pull(dy)

    for h in args.hidden:
        cases, size = {}, 4 * h**2
        for rows in args.rows:
            x, w, dy, gate = arrays(rows, h, args.block, dtype)
            scores = gate_scores(gate, x, (h // args.block, 4 * h // args.block))
            cases[rows, "dense"] = all_of_dense, (x, dy), [w]
            for s in args.sparsity:
                cases[rows, s] = all_of_sparse, (x, topk_gates(scores, sparsity=s), dy), [w]
        times = timed(cases, turns=9)
        for rows, s in itertools.product(args.rows, args.sparsity):
            mine = {"dense": times[rows, "dense"], "sparse": times[rows, s]}
            results.write(
                "batched",
                rows=rows,
                hidden=h,
                block=args.block,
                dtype=dtype,
                implementation=args.implementation or "default",
                keeps_freed_memory=args.keeps_freed_memory,
                sparsity=s,
                **fields(mine),
                sparse_over_dense=mine["sparse"].median / mine["dense"].median,
                bound_us=6 * rows * size / rate * 1e6,
            )


def run(args):
    """The parts and types that the arguments name."""
    unknown = set(args.parts) - {"decode", "batched"}
    if unknown:
        raise ValueError(f"Part {', '.join(sorted(unknown))} is unknown; choose decode, batched or both.")
    for sparsity in args.sparsity:
        num_kept_blocks(1, sparsity)
    require_positive(args, "devices", "block", "gate_rank", "hidden", "rows", "few_rows")
    for h in args.hidden:
        if h % args.block:
            raise ValueError(f"--hidden {h} is not a multiple of --block {args.block}; choose a block that divides it.")
    if not 0 <= args.rotate_mib < math.inf:
        raise ValueError(f"--rotate-mib is {args.rotate_mib:g}; it must be at least 0 and finite.")
    parts = args.parts or ("decode", "batched")
    # Training keeps freed memory, so the products of training are measured with it.
    args.keeps_freed_memory = "batched" in parts and keep_freed_memory()
    if args.devices > 1:
        if "batched" in parts:
            raise ValueError("Only the part decode is sharded over devices; name it: kernels decode --devices 2.")
        jax.config.update("jax_num_cpu_devices", args.devices)
        if jax.device_count() != args.devices:
            raise ValueError(f"JAX has {jax.device_count()} devices here and --devices is {args.devices}.")
    results = Results(args.output)
    for part, dtype in itertools.product(parts, args.dtype):
        {"decode": decode, "batched": batched}[part](results, args, dtype)


def main():
    options = parser(
        __doc__,
        hidden=[1536],
        sparsity=[0.5, 0.75, 0.9],
        block=128,
        dtype=["float32"],
        few_rows=[1, 4, 16],
        gate_rank=None,
        implementation=None,
    )
    options.add_argument("parts", nargs="*", help="decode, batched; both if none is named")
    options.add_argument("--rows", type=int, nargs="+", default=[64, 2240], help="of the batched product")
    options.add_argument(
        "--rotate-mib", type=float, default=128.0, help="kept blocks of all copies of a weight; 0: one"
    )
    options.add_argument("--devices", type=int, default=1, help="CPU devices that block columns are sharded over")
    run(options.parse_args())


if __name__ == "__main__":
    script(main)
