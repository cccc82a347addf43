"""Compiles the training step for slices of a TPU pod, without one, and counts what every chip would hold, do and send.

    python -m benchmarks.pod.pod_compile [--preset ptb-lstm wikitext103-qrnn] [--topology v5e:16x16 v5p:4x4x4 v6e:16x16]
                                        [--rows 8] [--mesh.model 1] [--mesh.shard-optimizer] [--output FILE]

The step is that of train.py with its Pallas kernels. The same code shards it over a mesh of the slice's chips, and
libtpu (pip install libtpu) compiles it to machine code on a machine that needs no TPU. All figures are for one chip:

    memory         parameters, state of the optimiser and temporaries as the compiler lays them out; activations are
                   what the program keeps for its backward pass, most of the temporaries; VMEM of the largest kernel
    flops          two for a multiply-add, by hand from bwds.cost: three products for each matrix, forward and backward,
                   over all blocks; the kernel for the gradient of a bfloat16 weight takes two. The compiler's own
                   count stands beside it: it counts nothing in a Pallas kernel, and the body of a loop once
    hbm_traffic    operands and results of the compiled instructions that lie in HBM, loops as often as they run
    collectives    from the compiled program: how many, bytes put in, and bytes sent when these are spread evenly

The times are bounds: each count over the published rate of the chip. Nothing is run, so nothing is measured.
"""

import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# There is no metadata server to ask about chips, nor a chip that two processes could fight over.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from benchmarks.command import parser, script
from benchmarks.lines import Results
from benchmarks.pod import hlo, hlo_counts
from benchmarks.pod.tpus import chip_of
from bwds import PRESETS, Config, cost, language_model
from bwds.collectives import DATA, MODEL
from bwds.losses import cross_entropy
from bwds.training.optim import make_optimizer
from bwds.training.pruning import hold_fixed
from bwds.training.sharding import Placement, over_devices
from bwds.training.step import init_state, train_step
from pallas_kernels.mesh_axes import like
from pallas_kernels.threads import cores

PRESET_NAMES = ("ptb-lstm", "wikitext103-qrnn")
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")


class DoesNotFitError(Exception):
    """The step needs more memory than a chip has."""


def placement_on(topology: str, *, model: int, shard_optimizer: bool = False) -> Placement:
    """A mesh of all chips of a topology; ``bwds.training.sharding.make_placement`` makes such a mesh of real devices.

    Raises:
        ValueError: the topology is unknown, or ``model`` does not divide it.
    """
    chip_of(topology)
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ValueError(f"topology {topology!r} is unknown to libtpu ({str(error).splitlines()[0]}).") from error
    if len(devices) % model:
        raise ValueError(f"--mesh.model is {model}, which does not divide the {len(devices)} chips of {topology}.")
    shape = (len(devices) // model, model)
    mesh = jax.make_mesh(shape, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)
    return Placement(mesh, shard_optimizer)


def with_batch(config: Config, placement: Placement, rows: int) -> Config:
    """The configuration with a batch of ``rows`` text streams for every place along ``data``.

    Raises:
        ValueError: blocks do not divide evenly along ``model``.
    """
    data, model = placement.mesh.shape[DATA], placement.mesh.shape[MODEL]
    columns = config.model.matrix_shape[1] // config.model.block_size
    if columns % model:
        raise ValueError(f"--mesh.model is {model}, which does not divide the {columns} columns of blocks.")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=rows * data))


def bytes_here(tree: Any) -> int:
    """Bytes of the arrays of a tree on one chip, without padding."""
    sizes = (
        jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype).size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
    return sum(sizes)


def activation_bytes(config: Config, placement: Placement, params: Any) -> int:
    """Bytes on one chip of what the forward pass keeps for the backward pass, as far as it grows with the batch."""
    lm, kept = language_model(config.model), []

    def measure(params, carry, key, tokens):
        params = like(params, tokens)

        def objective(params):
            logits, _, _ = lm.apply(params, tokens, carry, dropout_key=key)
            return cross_entropy(logits, tokens).mean()

        _, backward = jax.vjp(objective, params)
        arrays = {id(leaf): leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward)}
        kept.append(sum(arrays.values()))
        return tokens

    rows, specs = placement.rows, placement.specs({"params": params})["params"]
    spread = over_devices(placement, measure, (specs, rows, P(), rows), rows)
    for batch in (config.data.batch_size, 2 * config.data.batch_size):
        tokens = jax.ShapeDtypeStruct((batch, config.data.sequence_length), jnp.int32)
        carry = jax.eval_shape(functools.partial(lm.init_carry, batch))
        jax.eval_shape(spread, params, carry, jax.eval_shape(lambda: jax.random.key(0)), tokens)
    return kept[1] - kept[0]


def flops_by_hand(config: Config, *, rows: int, model: int) -> tuple[int, int]:
    """Floating-point operations of a step on one chip: (of the Pallas kernels, of all products).

    Blocks are sharded over ``model``, and so are tokens if they divide evenly; every chip computes all gates. All
    blocks count. With few rows on a chip there are blocks that no row keeps, so there the kernels do less.
    """
    costs, tokens = cost(config), rows * config.data.sequence_length
    softmax = costs.softmax if config.model.vocab_size % model else costs.softmax // model
    blocks = (costs.dense - costs.softmax) // model
    kernels = 2 * tokens * blocks * (4 if config.model.dtype == "bfloat16" else 3)
    return kernels, kernels + 2 * tokens * 3 * (softmax + costs.gates)


def compile_step(config: Config, placement: Placement) -> tuple[Any, str, Any]:
    """The compiled step, its text, and the state that it takes, as shapes.

    The text is the compiler's own dump. ``as_text`` sometimes fails: it reads the program with jaxlib's parser,
    which refuses some of libtpu's programs for v5p.

    Raises:
        DoesNotFitError: the step does not fit into the memory of a chip.
    """
    lm = language_model(config.model)
    optimizer = hold_fixed(make_optimizer(config.optim, config.train.steps), config)
    fresh = functools.partial(init_state, lm, optimizer, batch_size=config.data.batch_size, placement=placement)
    state = placement.template(fresh, jax.eval_shape(lambda: jax.random.key(0)))
    shape = (config.data.batch_size, config.data.sequence_length)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=placement.sharding(placement.rows))
    new_epoch = jax.ShapeDtypeStruct((), jnp.bool_, sharding=placement.replicated)
    traced = train_step.trace(lm, optimizer, state, tokens, tokens, new_epoch, None, placement)
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFitError(str(error).splitlines()[0]) from error
        (text,) = Path(folder).glob("*.after_codegen.txt")
        return compiled, text.read_text(), state


def count(config: Config, topology: str, placement: Placement) -> dict[str, Any]:
    """All counts of a step, for one chip."""
    chip, mesh = chip_of(topology), placement.mesh
    rows = config.data.batch_size // mesh.shape[DATA]
    compiled, text, state = compile_step(config, placement)
    memory, program = compiled.memory_analysis(), hlo.parse(text)
    kernels, found = hlo_counts.kernels(program), hlo_counts.collectives(program)
    kernel_flops, flops = flops_by_hand(config, rows=rows, model=mesh.shape[MODEL])
    xla_flops = compiled.cost_analysis()["flops"]
    traffic, sent = hlo_counts.hbm_bytes(program), sum(c.sent for c in found.values())
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return {
        "parameter_bytes": bytes_here(state.params),
        "optimizer_bytes": bytes_here(state.opt_state),
        "activation_bytes": activation_bytes(config, placement, state.params),
        "held_bytes": held,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "memory_bytes": total,
        "kernel_calls": sum(kernel.count for kernel in kernels),
        "kernel_vmem_limit": max(kernel.vmem_limit for kernel in kernels),
        "kernel_vmem_used": max(kernel.vmem_used for kernel in kernels),
        "flops": flops,
        "kernel_flops": kernel_flops,
        "xla_flops": round(xla_flops),
        "hbm_traffic": traffic,
        "collectives": {kind: c._asdict() | {"sent": round(c.sent)} for kind, c in sorted(found.items())},
        "sent_bytes": round(sent),
        "compute_ms": flops / chip.flops * 1e3,
        "memory_ms": traffic / chip.hbm_bandwidth * 1e3,
        "interconnect_ms": sent / chip.interconnect * 1e3,
    }


def case(config: Config, topology: str, *, rows: int, model: int = 1, shard_optimizer: bool = False) -> dict[str, Any]:
    """One line of results: what is compiled, and its counts.

    Raises:
        ValueError: the mesh does not fit the topology or the model.
        DoesNotFitError: the step does not fit into the memory of a chip.
    """
    placement = placement_on(topology, model=model, shard_optimizer=shard_optimizer)
    config = with_batch(config, placement, rows)
    return {
        "topology": topology,
        "chips": placement.mesh.size,
        "data": placement.mesh.shape[DATA],
        "model": model,
        "shard_optimizer": shard_optimizer,
        "rows": rows,
        "batch": config.data.batch_size,
        "sequence_length": config.data.sequence_length,
        "vocab": config.model.vocab_size,
        "dtype": config.model.dtype,
    } | count(config, topology, placement)


def line_or_reason(name: str, config: Config, topology: str, rows: int, options: dict[str, Any]) -> Any:
    """One line of results, or a sentence that says why the step does not fit. Other errors are those of ``case``."""
    start = time.perf_counter()
    try:
        line = case(config, topology, rows=rows, **options)
    except DoesNotFitError as error:
        return f"{name} on {topology} with {rows} rows does not fit: {error}"
    return {"preset": name, **line, "seconds": time.perf_counter() - start}


def main():
    command = parser(__doc__)
    command.add_argument("--preset", nargs="+", choices=PRESET_NAMES, default=PRESET_NAMES)
    command.add_argument("--topology", nargs="+", default=TOPOLOGIES, help="a chip and a shape, like v5e:16x16")
    command.add_argument("--rows", nargs="+", type=int, default=[8], help="text streams for each place along data")
    command.add_argument("--mesh.model", dest="model", type=int, default=1, help="chips that share columns and tokens")
    command.add_argument("--mesh.shard-optimizer", dest="shard_optimizer", action="store_true")
    command.add_argument("--data.vocab-limit", dest="vocab_limit", type=int, help="fewer tokens than the preset has")
    args = command.parse_args()
    if min(args.model, *args.rows) < 1:
        command.error("--rows and --mesh.model must be at least 1")
    if importlib.util.find_spec("libtpu") is None:
        command.error("the TPU compiler is not installed; pip install libtpu")
    configs = {}
    for name in args.preset:
        config = PRESETS[name]
        tokens = min(config.model.vocab_size, args.vocab_limit or config.model.vocab_size)
        configs[name] = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokens))
    options = {"model": args.model, "shard_optimizer": args.shard_optimizer}
    cases = list(itertools.product(configs.items(), args.topology, args.rows))
    results = Results(args.output)
    # A process for each case, as the compiler works mostly in one thread. A process that uses JAX must not be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(cores(), len(cases)), mp_context=context) as pool:
        found = [pool.submit(line_or_reason, *case, topology, rows, options) for case, topology, rows in cases]
        try:
            for future in found:
                line = future.result()
                if isinstance(line, str):
                    command.exit(1, f"{line}\n")
                results.write("pod_compile", **line)
        except ValueError as error:
            command.error(str(error))
        finally:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    script(main)
