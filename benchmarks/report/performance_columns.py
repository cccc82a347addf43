"""The columns of the tables of docs/performance.md: what each kind of raw line says, in words."""

from typing import Any

from benchmarks.report.runs import Row
from benchmarks.report.tables import MISSING, number

BASELINES = {
    "dense_float32": "dense, float32",
    "pytorch": "PyTorch",
    "pytorch_without_onednn": "PyTorch without oneDNN",
    "pytorch_graph": "PyTorch, one CUDA graph",
    "pytorch_float16": "PyTorch, float16",
    "pytorch_graph_float16": "PyTorch, float16, one CUDA graph",
    "cudnn": "cuDNN",
}


def _unit(microseconds: float) -> tuple[float, str]:
    """The number of microseconds in the unit that suits a time, and the unit's name."""
    return (1.0, "µs") if microseconds < 1000 else (1e3, "ms") if microseconds < 1e6 else (1e6, "s")


def time(row: Row, name: str) -> str:
    """Median and quartiles: "1.80 ms (1.73-1.94)"."""
    unit = "ms" if f"{name}_ms" in row else "us"
    if f"{name}_{unit}" not in row:
        return MISSING
    scale = 1e3 if unit == "ms" else 1.0
    divisor, word = _unit(row[f"{name}_{unit}"] * scale)
    low, _, high = (number(q * scale / divisor) for q in row[f"{name}_quartiles_{unit}"])
    return f"{number(row[f'{name}_{unit}'] * scale / divisor)} {word} ({low}-{high})"


def _bound(row: Row, name: str = "bound") -> str:
    value = row.get(f"{name}_us", row.get(f"{name}_ms", 0) * 1e3)
    if not value:
        return MISSING
    divisor, word = _unit(value)
    return f"{number(value / divisor)} {word}"


def ratio(row: Row, key: str) -> str:
    return f"{row[key]:.2f}" if key in row else MISSING


def _product(row: Row) -> dict[str, Any]:
    return {
        "H": row["hidden"],
        "block": row["block"],
        "type": row["dtype"],
        "gate rank": row.get("gate_rank") or "full",
        "rows": row["rows"],
        "sparsity": row["sparsity"],
        # For one row this is the density, which the sparsity already says.
        "blocks read": f"{row['share_read']:.1%}" if row["rows"] > 1 else MISSING,
        "dense": time(row, "dense"),
        "bound of dense": _bound(row, "dense_bound"),
        "dense, columns sharded": time(row, "dense_sharded"),
        "dense, float32": time(row, "dense_float32"),
        "dense, NumPy's BLAS": time(row, "dense_blas"),
        "product": time(row, "product"),
        "bound of the product": _bound(row),
        "layer": time(row, "layer"),
        "bound of the layer": _bound(row, "layer_bound"),
        "speed-up of the product": ratio(row, "speedup_product"),
        "of the layer": ratio(row, "speedup_layer"),
        "product over dense, float32": ratio(row, "speedup_product_over_dense_float32"),
        "layer over dense, float32": ratio(row, "speedup_layer_over_dense_float32"),
        "product over BLAS": ratio(row, "speedup_product_over_dense_blas"),
        "layer over BLAS": ratio(row, "speedup_layer_over_dense_blas"),
    }


def _batched(row: Row) -> dict[str, Any]:
    return {
        "rows": row["rows"],
        "H": row["hidden"],
        "block": row["block"],
        "type": row["dtype"],
        "sparsity": row.get("sparsity", 0.5),
        "dense": time(row, "dense"),
        "block-sparse": time(row, "sparse"),
        "bound": _bound(row),
        "block-sparse / dense": ratio(row, "sparse_over_dense"),
    }


def _train_step(row: Row) -> dict[str, Any]:
    return {
        "preset": f"`{row['preset']}`",
        "H": row.get("hidden", MISSING),
        "block": row.get("block", MISSING),
        # From the run itself, because the preset may have changed since.
        "batch": f"{row['rows']} x {row['tokens_per_second'] * row['dynamic_ms'] / 1e3 / row['rows']:.0f}",
        "type": row.get("dtype", "float32"),
        "sparsity": row["sparsity"],
        "freed memory": {None: MISSING, True: "kept", False: "given back"}[row.get("keeps_freed_memory")],
        "dense": time(row, "dense"),
        "bound of dense": _bound(row, "dense_bound"),
        "dynamic": time(row, "dynamic"),
        "bound of dynamic": _bound(row),
        "dynamic / dense": ratio(row, "dynamic_over_dense"),
        "PyTorch": time(row, "pytorch"),
        "dynamic / PyTorch": ratio(row, "dynamic_over_pytorch"),
    }


def _model_decode(row: Row) -> dict[str, Any]:
    others = {
        column: value
        for name, title in BASELINES.items()
        for column, value in ((title, time(row, name)), (f"over {title}", ratio(row, f"speedup_over_{name}")))
    }
    return {
        "model": f"{row['cell'].upper()} {row['layers']} x {row['hidden']}, vocabulary {row['vocab']:,}",
        "block": row["block"],
        "type": row["dtype"],
        "gate rank": "none: norms" if row.get("gate_source") == "norm" else row["gate_rank"] or "full",
        "batch": row["batch"],
        "sparsity": row["sparsity"],
        "blocks read": f"{row['share_read']:.1%}" if row["batch"] > 1 else MISSING,
        "dense": time(row, "dense"),
        "bound of dense": _bound(row, "dense_bound"),
        "dynamic": time(row, "dynamic"),
        "bound of dynamic": _bound(row),
        "tokens per second": number(row["dynamic_tokens_per_second"]),
        "speed-up over dense": ratio(row, "speedup_over_dense"),
    } | others


def _token_profile(row: Row) -> dict[str, Any]:
    parts = {name: row[f"{name}_us"] for name in ("scores", "choice", "product", "softmax", "rest")}
    return {
        "model": f"{row['cell'].upper()} {row['layers']} x {row['hidden']}",
        "gate rank": row["gate_rank"] or "full",
        "sparsity": row["sparsity"],
        "a token": time(row, "token"),
        "with a trace": _bound(row, "traced"),
    } | {name: f"{number(value)} µs ({value / row['traced_us']:.1%})" for name, value in parts.items()}


COLUMNS = {
    "decode": _product,
    "batched": _batched,
    "train_step": _train_step,
    "model_decode": _model_decode,
    "token_profile": _token_profile,
}
