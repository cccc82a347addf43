"""The summary that ``hardware`` writes of its lines: a page with the ratios, what ran and what is left."""

import json
from collections.abc import Callable
from typing import Any

from benchmarks.lines import case_of
from benchmarks.measure.hardware_parts import Part
from bwds.timing import verdict

Line = dict[str, Any]


def _of(kind: str, text: Callable[[Line], str]) -> Callable[[list[Line]], list[str]]:
    return lambda lines: [text(line) for line in lines if line["benchmark"] == kind]


def _right(lines: list[Line]) -> list[str]:
    # A part that was cut off and run again has some cases twice: the later line counts.
    cases = list({case_of(line): line for line in lines if line["benchmark"] == "correct"}.values())
    wrong = [line for line in cases if not line["right"]]
    names = [f"wrong: {json.dumps({k: v for k, v in line.items() if k != 'benchmark'})}" for line in wrong]
    return [f"{len(cases) - len(wrong)} of {len(cases)} cases right", *names] if cases else []


def _decode(line: Line) -> str:
    return (
        f"H {line['hidden']}, {line['rows']} rows, {line['dtype']}, sparsity {line['sparsity']}: "
        f"product {line['speedup_product']:.2f}x dense, with its gate {line['speedup_layer']:.2f}x; "
        f"{line['product_us']:.0f} us, bound {line['bound_us']:.0f}; dense {line['dense_us']:.0f}, "
        f"bound {line['dense_bound_us']:.0f}"
    )


def _model(line: Line) -> str:
    others = [
        f"{line[key]:.2f}x {key.removeprefix('speedup_over_')}" for key in line if key.startswith("speedup_over_")
    ]
    return (
        f"{line['cell'].upper()} {line['layers']} x {line['hidden']}, {line['dtype']}, batch {line['batch']}, sparsity "
        f"{line['sparsity']}{', no gate' * (line.get('gate_source') == 'norm')}: "
        f"{line['dynamic_tokens_per_second']:,.0f} tokens a second, {', '.join(others)}"
    )


def _batched(line: Line) -> str:
    return (
        f"{line['rows']} rows, H {line['hidden']}, {line['dtype']}, sparsity {line['sparsity']}: value and gradients "
        f"take {line['sparse_over_dense']:.2f} times dense's {line['dense_us']:.0f} us"
    )


def _step(line: Line) -> str:
    return (
        f"{line['preset']}, {line['dtype']}, sparsity {line['sparsity']}: {line['dynamic_over_dense']:.2f} times "
        f"dense's {line['dense_ms']:.1f} ms"
    )


def _profile(line: Line) -> str:
    of = {k: v for k, v in line.items() if k not in ("benchmark", "kernels", "launches", "kernels_us", "span_us")}
    words = ", ".join(f"{k} {v}" for k, v in of.items() if v is not None)
    return f"{words}: {line['launches']:.0f} launches, busy {line['kernels_us']:.0f} of {line['span_us']:.0f} us"


def _quality(line: Line) -> str:
    if "failed" in line:
        return f"{line['cell']}: {line['failed']}"
    return (
        f"{line['cell']}: validation {line['validation_perplexity']:.2f}, test {line['test_perplexity']:.2f}, "
        f"cost {line['relative_cost']:.2f} of dense"
    )


def _rival(line: Line) -> str:
    return (
        f"H {line['hidden']}, {line['rows']} rows, {line['dtype']}, sparsity {line['sparsity']}: the product takes "
        f"{line['product_over_ragged']:.2f} times ragged_dot's {line['ragged_us']:.0f} us"
    )


SECTIONS = {
    "Are the kernels right?": _right,
    "Products of decoding": _of("decode", _decode),
    "Whole models": _of("model_decode", _model),
    "Training steps": _of("train_step", _step),
    "Products of training": _of("batched", _batched),
    "Launches": _of("profile", _profile),
    "jax.lax.ragged_dot": _of("rival", _rival),
    "The paper's comparison": _of("quality", _quality),
}


def pays(lines: list[Line]) -> str | None:
    """A sentence: from which width on skipping blocks makes one stream faster. None where no width was measured."""
    found: dict[float, dict[int, float]] = {}
    for line in lines:
        if line["benchmark"] == "model_decode" and line["batch"] == 1 and line["dtype"] == "float32":
            best = min(line[key] for key in line if key.startswith("speedup_over_"))
            found.setdefault(line["sparsity"], {})[line["hidden"]] = best
    return verdict(found, "the best dense model timed") if found else None


def page(lines: list[Line], parts: list[Part]) -> str:
    """The summary, in Markdown."""
    environment = next((line for line in lines if line["benchmark"] == "environment"), None)
    ended = {line["part"]: line for line in lines if line["benchmark"] == "part"}
    text = ["# What this machine tells", ""]
    if environment is not None:
        name = environment["processor"] if environment["platform"] == "cpu" else environment["device"]
        text += [f"{name}, {environment['cores']} cores, jax {environment['jax']}, Python {environment['python']}.", ""]
    if answer := pays(lines):
        text += [answer, ""]
    for title, section in SECTIONS.items():
        if found := section(lines):
            text += [f"## {title}", "", *(f"- {line}" for line in found), ""]
    text += ["## Parts", ""]
    for part in parts:
        text.append(f"- {part.name}: {how_it_ended(ended.get(part.name))} ({part.tells})")
    return "\n".join(text) + "\n"


def how_it_ended(line: Line | None) -> str:
    """How a part ended, in words."""
    if line is None:
        return "not run"
    if line["exit_code"] is None:
        return f"cut off after {line['seconds']:.0f} s"
    return f"done in {line['seconds']:.0f} s" if line["exit_code"] == 0 else f"failed with status {line['exit_code']}"
