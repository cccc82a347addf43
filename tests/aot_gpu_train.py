"""Compiles the training step of the paper's models for an H200 on a machine that has no GPU, and prints what it needs.

    JAX_PLATFORMS=cpu python -m tests.aot_gpu_train

One JSON object a line: preset, type of the products; kernels of ours in the program by name, each as often as a step
runs it; bytes of memory that the step takes, its state included. Ends with status 3 where a compiler is missing, as
``aot_gpu``.
"""

import dataclasses
import functools
import json
import os
import re
from collections import Counter

from tests.aot_gpu import h200, need_compiler

PRESET_NAMES = ("ptb-lstm", "ptb-qrnn")


def compile_all() -> None:
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType

    from benchmarks.pod.hlo import executions, parse
    from bwds import PRESETS, language_model
    from bwds.collectives import DATA, MODEL
    from bwds.training.optim import make_optimizer
    from bwds.training.sharding import Placement
    from bwds.training.step import init_state, train_step

    devices = list(h200()[0].devices.flat)
    mesh = jax.make_mesh((1, 1), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)
    placement = Placement(mesh)
    for name in PRESET_NAMES:
        for dtype in ("float32", "bfloat16"):
            preset = PRESETS[name]
            lm = language_model(dataclasses.replace(preset.model, dtype=dtype))
            optimizer = make_optimizer(preset.optim, preset.train.steps)
            fresh = functools.partial(init_state, lm, optimizer, batch_size=preset.data.batch_size, placement=placement)
            state = placement.template(fresh, jax.eval_shape(lambda: jax.random.key(0)))
            tokens = jax.ShapeDtypeStruct(
                (preset.data.batch_size, preset.data.sequence_length),
                jnp.int32,
                sharding=placement.sharding(placement.rows),
            )
            new_epoch = jax.ShapeDtypeStruct((), jnp.bool_, sharding=placement.replicated)
            traced = train_step.trace(lm, optimizer, state, tokens, tokens, new_epoch, None, placement)
            compiled = traced.lower(lowering_platforms=("cuda",)).compile()
            program = parse(compiled.as_text())
            kernels: Counter[str] = Counter()
            for computation, times in executions(program).items():
                for instruction in program.computations[computation].values():
                    called = re.search(r"(\w+_kernel)\b", instruction.attributes)
                    if instruction.opcode == "custom-call" and called:
                        kernels[called[1]] += times
            memory = compiled.memory_analysis()
            held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            found = {"preset": name, "dtype": dtype, "kernels": kernels}
            print(json.dumps(found | {"bytes": held + memory.temp_size_in_bytes}), flush=True)


if __name__ == "__main__":
    need_compiler()
    # XLA takes cuBLAS for its dense products here: its Triton ones need tuning, which runs candidates.
    os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    compile_all()
