"""Tokens per second of whole models: block-wise dynamic at several sparsities, dense, and what one would take instead.

    python -m benchmarks.measure.decode [--cell lstm qrnn] [--hidden 1536] [--batch 1 4 16] [--sparsity 0.5 0.75 0.9]
                                       [--dtype float32 bfloat16] [--gate-source learned norm] [--gate-rank RANK]
                                       [--implementation NAME] [--vocab 10000] [--output FILE]

Decoding is greedy, from the embedding to the most probable token, and includes gates, selection and indexing. One jit
makes all tokens of a rollout. The streams of a batch start with different tokens. Parameters are random: speed does not
depend on their values. All models of one size take turns, also those of several gate sources. Models in bfloat16 also
take turns with the dense one in float32, which may be faster on a CPU. Dense LSTMs of other libraries stand beside
ours: PyTorch's if torch is installed, and cuDNN's on a GPU.

The bound is the bytes of weights that one step has to read (the kept blocks and everything dense), over the bandwidth
of a large copy.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.bounds import copy_bandwidth
from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results, fields
from benchmarks.measure.baselines import baseline
from bwds import ModelConfig, cost, decode_params, language_model, num_kept_blocks
from bwds.decode_speed import decoding
from bwds.timing import require_turns, time_in_turns


def parameters(config):
    """A function from a key to parameters laid out for decoding: one program, which keeps no other copy of them."""

    def make(key):
        params = language_model(config).init(key)
        # At initialisation the biases of gates outweigh their inputs, so all streams would keep much the same blocks.
        # Inputs grow in training. An embedding that is ten times as large lets them decide here too.
        return decode_params(params | {"embedding": 10 * params["embedding"]}, config)

    return jax.jit(make)


def gibibytes(configs):
    """Memory of the parameters of all these models, in GiB."""
    leaves = jax.tree.leaves([jax.eval_shape(parameters(config), jax.random.key(0)) for config in configs])
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / 2**30


@partial(jax.jit, static_argnames=("lm",))
def share_read(lm, params, token, carry):
    """The fraction of blocks that some stream of the batch keeps."""
    usage = lm.apply(params, token, carry)[2].usage
    return jnp.stack([(used > 0).mean() for used in usage.values()]).mean()


def dense_models(dynamic):
    """The dense models that a dynamic one is compared with, by name."""
    dense = dataclasses.replace(dynamic, method="dense")
    if dynamic.dtype == "float32":
        return {"dense": dense}
    return {"dense": dense, "dense_float32": dataclasses.replace(dense, dtype="float32")}


def by_source(dynamic, sources):
    """The dynamic model of each gate source; only a learned gate has a rank."""
    return {
        source: dataclasses.replace(dynamic, gate_source=source, gate_rank=None if source == "norm" else rank)
        for source, rank in ((source, dynamic.gate_rank) for source in sources)
    }


def decode(results, args, bandwidth, dynamic, batch, params):
    """Writes one line per gate source and sparsity, all from the same turns."""
    first = jnp.arange(batch) * (dynamic.vocab_size // batch)

    def rollout(config, params):
        return decoding(config, params, steps=args.steps, first=first)

    configs = {
        (source, sparsity): dataclasses.replace(config, sparsity=sparsity)
        for source, config in by_source(dynamic, args.gate_source).items()
        for sparsity in args.sparsity
    }
    models = dense_models(dynamic)
    dense = models["dense"]
    other = {name: rollout(config, params[name]) for name, config in models.items()}
    other |= baseline(dense, first, args.steps)
    calls = other | {(source, s): rollout(config, params[source]) for (source, s), config in configs.items()}
    times = time_in_turns(calls, turns=args.turns, least=0.0)
    per_step = {name: type(t)(q / args.steps for q in t) for name, t in times.items()}
    dense_bound = cost(dense).dense_bytes_read / bandwidth
    for (source, sparsity), config in configs.items():
        tokens, carry = calls[source, sparsity]()
        share = float(share_read(language_model(config), params[source], tokens[:, -1:], carry))
        costs = cost(config)
        # ``costs`` are those of one stream; several streams together keep more blocks.
        more = share * (costs.dense - costs.softmax) - costs.blocks
        read = costs.bytes_read + more * jnp.dtype(config.dtype).itemsize
        mine = {name: per_step[name] for name in other} | {"dynamic": per_step[source, sparsity]}
        results.write(
            "model_decode",
            cell=config.cell,
            hidden=config.hidden_size,
            layers=config.num_layers,
            vocab=config.vocab_size,
            block=config.block_size,
            gate_source=source,
            gate_rank=config.gate_rank,
            dtype=config.dtype,
            implementation=config.implementation or "default",
            batch=batch,
            sparsity=sparsity,
            share_read=share,
            **fields(mine),
            **{f"{name}_tokens_per_second": batch / t.median for name, t in mine.items()},
            **{
                f"speedup_over_{name}": t.median / mine["dynamic"].median
                for name, t in mine.items()
                if name != "dynamic"
            },
            bound_us=read / bandwidth * 1e6,
            dense_bound_us=dense_bound * 1e6,
        )


def run(args):
    """All models of the arguments."""
    require_positive(args, "hidden", "batch", "layers", "vocab", "block", "gate_rank", "steps")
    require_turns(args.turns)
    if not args.max_gib > 0:
        raise ValueError(f"--max-gib is {args.max_gib:g}; it must be above 0.")
    if max(args.batch) > args.vocab:
        raise ValueError(f"batch is {max(args.batch)}; it must be at most {args.vocab}, the tokens of the vocabulary.")
    cases = [
        ModelConfig(
            vocab_size=args.vocab,
            hidden_size=hidden,
            num_layers=args.layers,
            cell=cell,
            block_size=args.block,
            gate_rank=args.gate_rank,
            dtype=dtype,
            implementation=args.implementation,
        )
        for cell in args.cell
        for dtype in args.dtype
        for hidden in args.hidden
    ]
    for sparsity in args.sparsity:
        num_kept_blocks(1, sparsity)
    results = Results(args.output)
    bandwidth = copy_bandwidth()
    results.write("copy", bytes_per_second=bandwidth)
    for dynamic in cases:
        models, gated = dense_models(dynamic), by_source(dynamic, args.gate_source)
        # The dense model counts twice, because another library's model is as large.
        needed = gibibytes([*gated.values(), *models.values(), models["dense"]])
        if needed > args.max_gib:
            name = f"{dynamic.cell} {dynamic.hidden_size} {dynamic.dtype}"
            reason = f"{name} takes {needed:.1f} GiB in all, more than --max-gib {args.max_gib:g}: left out"
            results.write("left_out", reason=reason)
            continue
        params = {name: parameters(config)(jax.random.key(0)) for name, config in {**models, **gated}.items()}
        for batch in args.batch:
            decode(results, args, bandwidth, dynamic, batch, params)


def main():
    options = parser(
        __doc__,
        cell=["lstm", "qrnn"],
        hidden=[1536],
        sparsity=[0.5, 0.75, 0.9],
        dtype=["float32"],
        block=128,
        gate_rank=None,
        vocab=10_000,
        turns=9,
        implementation=None,
    )
    options.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="streams decoded side by side")
    options.add_argument("--layers", type=int, default=2)
    options.add_argument(
        "--gate-source",
        nargs="+",
        choices=["learned", "norm"],
        default=["learned"],
        help="what chooses the blocks: a gate, or norms, which take no product",
    )
    options.add_argument("--steps", type=int, default=16, help="tokens of one rollout")
    options.add_argument("--max-gib", type=float, default=16.0, help="models that together take more are left out")
    run(options.parse_args())


if __name__ == "__main__":
    script(main)
