"""The block-sparse product against the dense one.

    python benchmarks/kernels.py [decode] [batched] [--output FILE] [--implementation NAME] [--hidden 1536 4096]
                                 [--sparsity 0.5 0.75 0.9] [--dtype float32 bfloat16] [--gate-rank RANK]
                                 [--rotate-mib 128] [--devices 1]

decode: products of 1, 4 and 16 rows, [H] -> [4H]; given the gates (with the indexing that needs) and from the input on
(scores, selection and product: what a layer pays). Weights are block-major. The bound is the bytes of the kept blocks,
for the layer also those of the gate, over the bandwidth of a large copy. Calls take copies of the weight in turn, as
many as it takes for the kept blocks of all of them to fill --rotate-mib: with one weight and the same gates every time
these blocks would stay in a cache, as they never do in a model. --devices N, on a CPU: block columns are sharded over N
devices, and so is a second dense product; the first one uses all cores as XLA sees fit.

batched: value and all three gradients for 64 and 2240 rows, against value and both gradients of the dense product. The
bound is dense's FLOPs at the measured rate of a large matmul.
"""

import argparse
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from common import Results, copy_bandwidth, fields, matmul_rate, time_in_turns
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bwds import block_sparse_matmul, num_kept_blocks, to_block_major, topk_gates
from bwds.gating import gate_scores, init_gate


def arrays(rows, h, block, dtype, gate_rank=None):
    k, n = h, 4 * h
    if h % block:
        raise ValueError(f"hidden {h} is not a multiple of block {block}; choose a block size that divides it.")
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (rows, k), dtype)
    w = jax.random.normal(keys[1], (k, n), dtype) * k**-0.5
    dy = jax.random.normal(keys[2], (rows, n), dtype)
    gate = init_gate(keys[3], k, (k // block) * (n // block), gate_rank)
    gate = {name: value if name == "bias" else value.astype(dtype) for name, value in gate.items()}
    return x, w, dy, gate


@jax.jit
def dense(x, w):
    return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(x.dtype)


def in_turn(function, copies, array):
    """``function`` of one copy of the array after the other."""
    turn = itertools.cycle([array, *(jnp.array(array, copy=True) for _ in range(copies - 1))])
    return lambda: function(next(turn))


def on_one_device(args, grid, x, w, gate):
    """A function of a sparsity, gates and a number of copies to calls without arguments, by name."""
    blocks = to_block_major(w, (args.block, args.block))

    def layer(x, w, gate, sparsity):
        gates = topk_gates(gate_scores(gate, x, grid), sparsity=sparsity)
        return block_sparse_matmul(x, w, gates, implementation=args.implementation)

    product = jax.jit(lambda x, w, gates: block_sparse_matmul(x, w, gates, implementation=args.implementation))
    layer = jax.jit(layer, static_argnames="sparsity")

    def calls(sparsity, gates, copies):
        return {
            "dense": in_turn(lambda w: dense(x, w), copies, w),
            "product": in_turn(lambda w: product(x, w, gates), copies, blocks),
            "layer": in_turn(lambda w: layer(x, w, gate, sparsity), copies, blocks),
        }

    return calls


def on_several_devices(args, grid, x, w, gate):
    """The same with block columns, and their gates, sharded; what every device needs of the others is exchanged."""
    mesh = Mesh(np.array(jax.devices()), ("model",))
    r, c = grid
    if c % args.devices:
        raise ValueError(f"{c} block columns do not divide among {args.devices} devices; choose another hidden size.")

    def place(array, spec):
        return jax.device_put(array, NamedSharding(mesh, spec))

    columns = P(None, None, "model")
    output, bias = P(None, "model"), place(gate["bias"].reshape(r, c), P(None, "model"))
    # Only the factor that gives the scores is sharded by column; that before a low rank is small.
    last = "kernel" if "kernel" in gate else "up"
    scorer = {"bias": bias, last: place(gate[last].reshape(-1, r, c), columns)}
    specs = {"bias": output, last: columns}
    if last == "up":
        scorer["down"], specs["down"] = place(gate["down"], P()), P()
    everywhere, blocks = place(x, P()), place(to_block_major(w, (args.block, args.block)), P("model"))
    sharded_w = place(w, P(None, "model"))

    def sharded(function, *in_specs):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=output))

    def product(x, w, gates):
        return block_sparse_matmul(x, w, gates, implementation=args.implementation)

    def layer(sparsity):
        def run(x, w, gate):
            local = {k: v if k == "down" else v.reshape(*v.shape[:-2], -1) for k, v in gate.items()}
            scores = gate_scores(local, x, (r, c // args.devices))
            gates = topk_gates(jax.lax.all_gather(scores, "model", axis=2, tiled=True), sparsity=sparsity)
            here = jax.lax.axis_index("model") * (c // args.devices)
            return product(x, w, jax.lax.dynamic_slice_in_dim(gates, here, c // args.devices, 2))

        return sharded(run, P(), P("model"), specs)

    dense_sharded, product_sharded = (
        sharded(dense, P(), P(None, "model")),
        sharded(product, P(), P("model"), columns),
    )

    def calls(sparsity, gates, copies):
        gates, layer_sharded = place(gates, columns), layer(sparsity)
        return {
            "dense": in_turn(lambda w: dense(x, w), copies, w),
            "dense_sharded": in_turn(lambda w: dense_sharded(everywhere, w), copies, sharded_w),
            "product": in_turn(lambda w: product_sharded(everywhere, w, gates), copies, blocks),
            "layer": in_turn(lambda w: layer_sharded(everywhere, w, scorer), copies, blocks),
        }

    return calls


def decode(results, args, dtype):
    bandwidth = copy_bandwidth()
    results.write("copy", bytes_per_second=bandwidth)
    for h, rows in itertools.product(args.hidden, (1, 4, 16)):
        x, w, _, gate = arrays(rows, h, args.block, dtype, args.gate_rank)
        grid = (h // args.block, 4 * h // args.block)
        calls = (on_one_device if args.devices == 1 else on_several_devices)(args, grid, x, w, gate)
        for sparsity in args.sparsity:
            gates = topk_gates(gate_scores(gate, x, grid), sparsity=sparsity)
            read = int((gates != 0).any(0).sum()) * args.block**2 * w.dtype.itemsize
            copies = max(1, math.ceil(args.rotate_mib * 2**20 / read))
            times = time_in_turns(calls(sparsity, gates, copies))
            gate_bytes = sum(value.nbytes for value in gate.values())
            results.write(
                "decode",
                rows=rows,
                hidden=h,
                block=args.block,
                gate_rank=args.gate_rank,
                dtype=dtype,
                implementation=args.implementation or "default",
                copies=copies,
                sparsity=sparsity,
                share_read=read / w.nbytes,
                **fields(times),
                speedup_product=times["dense"].median / times["product"].median,
                speedup_layer=times["dense"].median / times["layer"].median,
                dense_bound_us=w.nbytes / bandwidth * 1e6,
                bound_us=read / bandwidth * 1e6,
                layer_bound_us=(read + gate_bytes) / bandwidth * 1e6,
            )


def batched(results, args, dtype):
    rate = matmul_rate(dtype=dtype)
    results.write("matmul", dtype=dtype, flops_per_second=rate)
    cases = [(64, 256, 32), (2240, 256, 32)] + [(rows, h, args.block) for h in args.hidden for rows in (64, 2240)]
    for rows, h, block in cases:
        x, w, dy, gate = arrays(rows, h, block, dtype)
        gates = topk_gates(gate_scores(gate, x, (h // block, 4 * h // block)), sparsity=0.5)

        @jax.jit
        def all_of_dense(x, w, dy):
            y, pull = jax.vjp(dense, x, w)
            return y, pull(dy)

        @jax.jit
        def all_of_sparse(x, w, gates, dy):
            y, pull = jax.vjp(
                lambda *operands: block_sparse_matmul(*operands, implementation=args.implementation), x, w, gates
            )
            return y, pull(dy)

        times = time_in_turns(
            {
                "dense": lambda x=x, w=w, dy=dy: all_of_dense(x, w, dy),
                "sparse": lambda x=x, w=w, gates=gates, dy=dy: all_of_sparse(x, w, gates, dy),
            },
            turns=9,
        )
        results.write(
            "batched",
            rows=rows,
            hidden=h,
            block=block,
            dtype=dtype,
            implementation=args.implementation or "default",
            **fields(times),
            sparse_over_dense=times["sparse"].median / times["dense"].median,
            bound_us=6 * rows * w.size / rate * 1e6,
        )


def run(args):
    """The parts and types that the arguments name."""
    unknown = set(args.parts) - {"decode", "batched"}
    if unknown:
        raise ValueError(f"Part {', '.join(sorted(unknown))} is unknown; choose decode, batched or both.")
    for sparsity in args.sparsity:
        num_kept_blocks(1, sparsity)
    for name in ("devices", "block", "gate_rank", "hidden"):
        values = getattr(args, name)
        smallest = min(values) if isinstance(values, list) else values
        if smallest is not None and smallest < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {smallest}; it must be at least 1.")
    parts = args.parts or ("decode", "batched")
    if args.devices > 1:
        if "batched" in parts:
            raise ValueError("Only the part decode is sharded over devices; name it: kernels.py decode --devices 2.")
        jax.config.update("jax_num_cpu_devices", args.devices)
        if jax.device_count() != args.devices:
            raise ValueError(f"JAX has {jax.device_count()} devices here and --devices is {args.devices}.")
    results = Results(args.output)
    for part, dtype in itertools.product(parts, args.dtype):
        {"decode": decode, "batched": batched}[part](results, args, dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="decode, batched; both if none is named")
    parser.add_argument("--output", help="JSONL file that results are appended to")
    parser.add_argument("--implementation", help="of the block-sparse product; default: the best one here")
    parser.add_argument("--hidden", type=int, nargs="+", default=[1536], help="H of products [H] -> [4H]")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--block", type=int, default=128, help="rows and columns of a block")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--gate-rank", type=int, help="rank of the gate of a layer; default: full")
    parser.add_argument("--rotate-mib", type=float, default=128.0, help="kept blocks of all copies of a weight; 0: one")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that block columns are sharded over")
    args = parser.parse_args()
    try:
        run(args)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
