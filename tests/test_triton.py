"""The Triton kernels: interpreted, compiled ahead of time for an H200, and on a GPU where there is one (-m gpu)."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from products import NAMES, assert_matches, expected, problem, run, without_nan

from pallas_kernels import to_block_major
from pallas_kernels.block_sparse import triton

# jax 0.11 and later warns wherever such a kernel is lowered; pytest resets the filter that the module sets.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

TOLERANCE = 1e-4
"""Relative to the largest entry, for exact products of float32. A single TF32 product errs by more."""
# Grid and shape of a block: blocks walked in parts, masks of several words, and results with so many tiles that no walk
# is shared.
SHAPES = (
    ((3, 4), (32, 64)),
    ((3, 4), (128, 32)),
    ((2, 3), (256, 128)),
    ((140, 2), (16, 16)),
    ((2, 140), (16, 32)),
)

interpreted_and_on_a_gpu = pytest.mark.parametrize(
    "interpret", [True, pytest.param(False, marks=pytest.mark.gpu)], ids=["interpreted", "compiled"]
)
each_layout = pytest.mark.parametrize("layout", ["row-major", "block-major"])


@pytest.fixture(autouse=True)
def exact_products():
    """Without this a GPU takes one TF32 product for each float32 product."""
    with jax.default_matmul_precision("float32"):
        yield


# Values and gradients, with NaN wherever nothing may be read ----------------------------------------------------------


@interpreted_and_on_a_gpu
@pytest.mark.parametrize(
    ("shape", "rows", "layout"),
    [
        (SHAPES[0], 1, "row-major"),
        (SHAPES[0], 70, "block-major"),
        (SHAPES[1], 1, "block-major"),
        (SHAPES[1], 40, "row-major"),
        (SHAPES[2], 1, "row-major"),
        (SHAPES[2], 16, "block-major"),
        (SHAPES[2], 40, "block-major"),
        (SHAPES[3], 1, "block-major"),
        (SHAPES[3], 5, "row-major"),
        (SHAPES[4], 1, "row-major"),
        (SHAPES[4], 17, "block-major"),
    ],
)
def test_other_shapes(shape, rows, layout, interpret):
    p = problem(rows, grid=shape[0], block=shape[1])
    assert_matches(p, run(p, triton, layout=layout, interpret=interpret), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 5, 16, 40, 70, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_combination_on_a_gpu(shape, rows, dtype):
    p = problem(rows, grid=shape[0], block=shape[1], dtype=dtype)
    for layout in ("row-major", "block-major"):
        assert_matches(p, run(p, triton, layout=layout, interpret=False), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 300])
def test_products_on_a_gpu_are_as_exact_as_asked_for(rows):
    """TF32 has 10 bits behind the point: errors near 2**-11."""
    p = problem(rows, grid=SHAPES[0][0], block=SHAPES[0][1])
    exact = run(p, triton, interpret=False)
    with jax.default_matmul_precision(None):
        fast = run(p, triton, interpret=False)
    for name, a, b, wanted in zip(NAMES, exact, fast, expected(p), strict=True):
        small, large = (np.abs(oracle.f64(v) - wanted).max() / np.abs(wanted).max() for v in (a, b))
        assert small < TOLERANCE < large < 4e-3, name


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "dtype", "named"),
    [
        ((24, 32), "float32", "24 x 32"),
        ((32, 8), "float32", "32 x 8"),
        ((1, 32), "bfloat16", "1 x 32"),
        ((32, 32), "float16", "float16"),
    ],
)
@each_layout
def test_what_the_kernels_cannot_do_is_refused_in_a_sentence(block, dtype, named, layout):
    x, w, gates = (
        jnp.zeros((2, 2 * block[0]), dtype),
        jnp.zeros((2 * block[0], 3 * block[1]), dtype),
        jnp.ones((2, 2, 3)),
    )
    w = to_block_major(w, block) if layout == "block-major" else w
    for refuse in (triton.check, triton.forward):
        with pytest.raises(ValueError, match=rf'{named}.*implementation="xla"\.'):
            refuse(x, w, gates)


# Compilation without a GPU --------------------------------------------------------------------------------------------


def all_products(x, w, gates, dy):
    return (
        triton.forward(x, w, gates),
        triton.input_gradients(x, w, gates, dy),
        triton.weight_gradient(x, w, gates, dy),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 16, 70])
def test_the_kernels_lower_for_cuda(rows, dtype):
    p = without_nan(problem(rows, grid=SHAPES[0][0], block=SHAPES[0][1], dtype=dtype))
    # jax 0.11 and later asks for a device to lower a Triton kernel for.
    device = getattr(jax.sharding, "AbstractDevice", None)
    chip = {} if device is None else {"abstract_device": device("NVIDIA H200", 132, "cuda")}
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), **chip)
    ):
        text = jax.jit(all_products).trace(*p).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") >= 3


@pytest.fixture(scope="module")
def compiled_ahead_of_time(compile_for_a_gpu) -> dict[tuple, dict]:
    """What ``aot_gpu.py`` found out, by (function, dtype, rows, layout, precision)."""
    keys = ("function", "dtype", "rows", "layout", "precision")
    return {tuple(kernel[key] for key in keys): kernel for kernel in compile_for_a_gpu("aot_gpu")}


def test_every_kernel_compiles_for_an_h200_without_spills(compiled_ahead_of_time):
    assert len(compiled_ahead_of_time) == 3 * (2 * (5 + 2) + 2)
    for case, kernel in compiled_ahead_of_time.items():
        assert kernel["target"] == "sm_90a", case
        assert kernel["spilled_bytes"] == 0, case


@pytest.mark.slow
def test_kernels_of_other_blocks_compile_for_an_h200_without_spills(compile_for_a_gpu):
    found = compile_for_a_gpu("aot_gpu", "16", "32", "64", "256", "512")
    assert len(found) == 5 * 3 * 2 * 3
    for kernel in found:
        assert kernel["target"] == "sm_90a", kernel
        assert kernel["spilled_bytes"] == 0, kernel
        if kernel["rows"] == 64:
            assert kernel["mma"] + kernel["wgmma"] > 0, kernel


@pytest.mark.slow
def test_the_training_step_compiles_for_an_h200(compile_for_a_gpu):
    """The models of the paper, in two layers: every product with blocks is a kernel, and each weight has one gradient.

    An LSTM's layer has a product a time step and one of all inputs, a QRNN's has one.
    """
    from bwds import PRESETS

    found = compile_for_a_gpu("aot_gpu_train")
    assert [(line["preset"], line["dtype"]) for line in found] == [
        (preset, dtype) for preset in ("ptb-lstm", "ptb-qrnn") for dtype in ("float32", "bfloat16")
    ]
    for line in found:
        recurrent = line["preset"] == "ptb-lstm"
        products = 2 * (PRESETS[line["preset"]].data.sequence_length + 1 if recurrent else 1)
        kernels = line["kernels"]
        assert kernels["forward_kernel"] == kernels["input_gradients_kernel"] == kernels["largest_kernel"] == products
        assert kernels["weight_gradient_kernel"] == (4 if recurrent else 2)
        # Of an H200: 141 GB.
        assert line["bytes"] < 10e9


def test_compiled_kernels_use_tensor_cores_and_wide_loads(compiled_ahead_of_time):
    for (function, dtype, rows, layout, _), kernel in compiled_ahead_of_time.items():
        case = f"{function} {dtype} {rows} {layout}: {kernel}"
        if function == "forward" and rows == 1:
            assert kernel["kernel"] == "matvec_kernel", case
            assert kernel["mma"] == kernel["wgmma"] == 0, case
        else:
            assert kernel["mma"] + kernel["wgmma"] > 0, case
        # For float32 the older instruction is faster in most sizes.
        if rows >= 64 and dtype == "bfloat16":
            assert kernel["wgmma"] > 0, case
        assert kernel["wide_loads"] > 0, case
        assert kernel["narrow_loads"] <= 8, case


def test_products_of_float32_take_one_pass_unless_more_is_asked_for(compiled_ahead_of_time):
    """One TF32 product as XLA's dense one; three of them where ``jax_default_matmul_precision`` is "float32"."""
    for function in ("forward", "input_gradients", "weight_gradient"):
        for rows in (16, 64):
            kernels = (
                compiled_ahead_of_time[function, "float32", rows, "row-major", precision]
                for precision in (None, "float32")
            )
            fast, exact = ((kernel["mma"] + kernel["wgmma"]) * kernel["threads"] for kernel in kernels)
            # A compiler may write a loop out once or twice.
            assert exact in (3 * fast, 6 * fast), (function, rows)
