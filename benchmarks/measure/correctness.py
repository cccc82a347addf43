"""Are the kernels of this device right? Each against float64 in NumPy, on the device itself.

    python -m benchmarks.measure.correctness [--small] [--output FILE]

The cases are the product and its three gradients, with NaN in every block that no row keeps and with columns of blocks
that are empty, full and in between; the choice of the k largest; a layer's fused gate and product; and the gradients of
whole models. Sizes are those of the benchmarks that take times; --small is for a CPU. Each case gets one line: the
largest error of each result as a share of its largest entry, and the error that is allowed. The exit status is 1 if an
error is larger. Cases that FILE has already, right at this revision on such a device, are left out, so that a run that
was cut off goes on.

In float32 an error of 1e-4 is allowed with exact products, and 4e-3 with the single TF32 product that a GPU takes by
default. In bfloat16 it is one and a half times the last rounding of the exact result.
"""

import dataclasses
import json
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import parser, script
from benchmarks.environment import environment
from benchmarks.lines import Results, case_of
from bwds import ModelConfig, language_model, topk_gates
from bwds.gating import init_gate
from bwds.linear import GateOptions, apply_linear
from pallas_kernels import to_block_major
from pallas_kernels.threads import cores
from pallas_kernels.topk.search import MAX_SCORES, largest
from tests import oracle, products

EXACT, SINGLE = 1e-4, 4e-3
GRID, BLOCK = (12, 48), 128
"""Blocks of a layer of 1536, and their size."""
WIDE = (32, 128)
"""Blocks of a layer of 4096."""
MANY = 16
"""With more rows than this only some are compared, because an oracle in NumPy is slow."""


def module_here() -> tuple[str, ModuleType]:
    """The implementation that ``block_sparse_matmul`` takes here, by name, and its module."""
    from pallas_kernels.block_sparse import xla

    if jax.default_backend() == "gpu":
        from pallas_kernels.block_sparse import triton

        return "triton", triton
    if jax.default_backend() == "tpu":
        from pallas_kernels.block_sparse import mosaic_tpu

        return "mosaic_tpu", mosaic_tpu
    return "xla", xla


def share(actual, wanted) -> float:
    """Largest error as a share of the largest entry; infinite where something is not finite."""
    error = np.abs(oracle.f64(actual) - wanted).max()
    return float(error / np.abs(wanted).max()) if np.isfinite(error) else np.inf


def rounded(wanted, dtype: str) -> float:
    """The error that the last rounding of an exact result may cost."""
    return 0.0 if dtype == "float32" else 1.5 * share(jnp.asarray(wanted, dtype), wanted)


def product(rows, grid, block, dtype, layout, precision="float32"):
    """(errors, allowed) of y, dx, dw and dgates."""
    name, module = module_here()
    p = products.problem(rows, grid=grid, block=block, dtype=dtype)
    # For many rows XLA's products read every block, as dense products do.
    if name == "xla" and rows > 16:
        p = products.without_nan(p)
    with jax.default_matmul_precision(precision):
        actual = products.run(p, module, layout=layout)
    actual, wanted = sampled(p, actual) if rows > MANY else (actual, products.expected(p))
    floor = SINGLE if precision is None else EXACT
    errors = {of: share(a, b) for of, a, b in zip(products.NAMES, actual, wanted, strict=True)}
    allowed = {
        of: floor + rounded(b, "float32" if of == "dgates" else dtype)
        for of, b in zip(products.NAMES, wanted, strict=True)
    }
    # The first column is empty.
    zeros = actual[3][..., 0], actual[2][:, : block[1]], actual[0][:, : block[1]]
    errors["what is omitted"] = max(float(np.abs(oracle.f64(z)).max()) for z in zeros)
    return errors, allowed | {"what is omitted": 0.0}


def sampled(p, actual):
    """(actual, wanted) of some rows of y, dx and dgates, and of some columns of dw, which sums over all rows."""
    some, (y, dx, dw, dgates) = slice(None, None, max(1, len(p.x) // 16)), actual
    few = products.Problem(p.x[some], p.w, p.gates[some], p.dy[some])
    wanted_y, wanted_dx, _, wanted_dgates = products.expected(few)
    width = 3 * p.block[1]
    wanted_dw = oracle.matmul_gradients(p.x, p.w[:, :width], p.gates[..., :3], p.dy[:, :width])[1]
    return (y[some], dx[some], dw[:, :width], dgates[some]), (wanted_y, wanted_dx, wanted_dw, wanted_dgates)


def choice(rows, n):
    """The share of wrong marks in the choice of the k largest scores, with ties among them."""
    scores = np.random.default_rng(n).normal(size=(rows, n)).astype(np.float32).round(3)
    errors = {}
    for k in sorted({1, (n + 1) // 2, n}):
        wanted = np.stack([oracle.kept_mask(row[None], k)[0] for row in scores])
        errors[f"k {k}"] = float((np.asarray(largest(jnp.asarray(scores), k)) != wanted).mean())
    return errors, dict.fromkeys(errors, 0.0)


def gates(rows, activation):
    """Gates of scores without ties."""
    scores = np.random.default_rng(0).permutation(rows * 576).reshape(rows, *GRID) / 576.0 - rows / 2 + 0.3
    wanted = oracle.gates(np.float32(scores), 144, activation)
    actual = topk_gates(jnp.asarray(scores, jnp.float32), sparsity=0.75, activation=activation)
    return {"gates": share(actual, wanted)}, {"gates": EXACT}


def layer(rows, dtype, rank, grid, block):
    """A layer's output in decoding, against the oracle with the blocks that the layer chose."""
    r, c = grid
    w = jax.random.normal(jax.random.key(0), (r * block, c * block), dtype) * (r * block) ** -0.5
    x = jax.random.normal(jax.random.key(1), (rows, r * block), dtype)
    params = {"kernel": to_block_major(w, (block, block)), "gate": init_gate(jax.random.key(2), r * block, r * c, rank)}
    options = GateOptions(grid)
    run = jax.jit(partial(apply_linear, save=False), static_argnums=(2, 3))
    with jax.default_matmul_precision("float32"):
        y, gating = run(params, x, options, r * c // 4)
    chosen = oracle.f64(gating.gates)
    wanted = oracle.matmul(oracle.f64(x), oracle.f64(w), chosen)
    kept = (chosen != 0).sum((1, 2))
    errors = {"y": share(y, wanted), "number of kept blocks": float(np.abs(kept - r * c // 4).max())}
    return errors, {"y": EXACT + rounded(wanted, dtype), "number of kept blocks": 0.0}


def model(cell, batch):
    """Gradients of a language model, against those of the same model with the reference products."""
    config = ModelConfig(vocab_size=200, hidden_size=256, block_size=32, cell=cell, gate_activation="softplus")
    tokens = jnp.asarray(np.random.default_rng(0).integers(200, size=(batch, 12)), jnp.int32)
    params = language_model(config).init(jax.random.key(0))

    def gradients(implementation):
        lm = language_model(dataclasses.replace(config, implementation=implementation))

        @jax.jit
        def run(params):
            def loss(params):
                logits = lm.apply(params, tokens, lm.init_carry(batch))[0]
                return (logits * jnp.sin(jnp.arange(logits.size)).reshape(logits.shape)).mean()

            return jax.grad(loss)(params)

        with jax.default_matmul_precision("float32"):
            return np.concatenate([oracle.f64(leaf).ravel() for leaf in jax.tree.leaves(run(params))])

    actual, wanted = gradients(None), gradients("reference")
    # One norm over all gradients, because rounding may change the choice of a few blocks.
    return {"gradients": float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))}, {"gradients": 1e-3}


def cases(small: bool):
    """(what, sizes, call) of every case."""
    if small:
        shapes, rows, decoded = [((3, 4), (32, 32))], (1, 4, 40), [((4, 6), 32)]
        counts = (33, 576)
    else:
        shapes, rows, decoded = [(GRID, (BLOCK, BLOCK))], (1, 4, 16, 128, 2240), [(GRID, BLOCK), (WIDE, BLOCK)]
        counts = (33, 576, 4096, MAX_SCORES, MAX_SCORES + 1)
    sizes = [
        {"rows": b, "grid": grid, "block": block, "dtype": dtype, "layout": layout}
        for grid, block in shapes
        for dtype in ("float32", "bfloat16")
        for b in rows
        for layout in (("row-major", "block-major") if b <= 16 else ("row-major",))
    ]
    if not small:
        # Blocks of other shapes, more blocks a column than a mask has bits, and one TF32 product.
        others = [((3, 4), (32, 64)), ((2, 3), (256, 128)), ((140, 2), (16, 16)), ((2, 140), (16, 32))]
        sizes += [
            {"rows": b, "grid": grid, "block": block, "dtype": "float32", "layout": "block-major"}
            for grid, block in others
            for b in (1, 5, 70)
        ]
        sizes += [sizes[-1] | {"rows": b, "grid": WIDE, "block": (128, 128)} for b in (1, 16)]
        sizes += [sizes[-1] | {"rows": b, "grid": GRID, "precision": None} for b in (16, 128)]
    if jax.default_backend() == "tpu":
        # The TPU kernels take block sizes that are multiples of 128.
        sizes = [size for size in sizes if not any(side % 128 for side in size["block"])]
    yield from (("product", size, partial(product, **size)) for size in sizes)
    for b in (1, 16):
        for n in counts:
            yield "top-k", {"rows": b, "scores": n}, partial(choice, b, n)
        for activation in ("linear", "softplus"):
            yield "gates", {"rows": b, "activation": activation}, partial(gates, b, activation)
        for dtype in ("float32", "bfloat16"):
            for grid, block in decoded:
                size = {"rows": b, "dtype": dtype, "rank": 64, "grid": grid, "block": block}
                yield "layer", size, partial(layer, **size)
    for cell in ("lstm", "qrnn"):
        for b in (4, 40):
            size = {"cell": cell, "batch": b}
            yield "model", size, partial(model, **size)


def described(what, size):
    """The fields of a case's line that say what it is."""
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in size.items()}
    return {"benchmark": "correct", "implementation": module_here()[0], "what": what, **lists}


def right_before(path: str | None) -> set[str]:
    """Cases that the file has as right, at this revision and on such a device."""
    found: set[str] = set()
    if path is None or not Path(path).exists():
        return found
    here, same = environment(), False
    for line in map(json.loads, Path(path).read_text().splitlines()):
        if line["benchmark"] == "environment":
            same = all(line.get(name) == here[name] for name in ("device", "jax", "revision", "modified"))
        elif same and line["benchmark"] == "correct" and line["right"]:
            found.add(case_of(line))
    return found


def check(case):
    """A case's line."""
    what, size, call = case
    line = described(what, size)
    try:
        errors, allowed = call()
    except Exception as error:
        traceback.print_exc()
        return line | {"right": False, "failed": f"{type(error).__name__}: {error}"[:500]}
    right = all(errors[of] <= allowed[of] for of in errors)
    short = [{of: float(f"{value:.3g}") for of, value in values.items()} for values in (errors, allowed)]
    return line | {"right": right, "errors": short[0], "allowed": short[1]}


def main():
    options = parser(__doc__)
    options.add_argument("--small", action="store_true", help="small sizes, as a CPU can interpret them")
    args = options.parse_args()
    known = right_before(args.output)
    results = Results(args.output)
    everything = [case for case in cases(args.small) if case_of(described(*case[:2])) not in known]
    wrong = 0
    # Most of the time goes into compilation, which uses one core per program.
    with ThreadPoolExecutor(cores()) as pool:
        for line in pool.map(check, everything):
            results.write(**line)
            wrong += not line["right"]
    results.write("correct_in_all", cases=len(known) + len(everything), wrong=wrong)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    script(main)
