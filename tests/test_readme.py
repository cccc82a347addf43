"""The README's Python runs, and its commands are the ones that CI runs.

Every ``python`` block of README.md is executed, top to bottom in one namespace, as a reader would type them. In docs/
only the blocks that open with ``python run`` are executed.
"""

import json
import re
from pathlib import Path

import pytest

from benchmarks.quality.intervals import difference, mean
from benchmarks.quality.variant_times import relative_times
from bwds import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = {ROOT / "README.md": "python", **dict.fromkeys(sorted(ROOT.glob("docs/*.md")), "python run")}
COMMANDS = ["pip install -r requirements.txt && python train.py", "pip install -r requirements.txt && python -m pytest"]


def python_blocks(page: Path, marker: str) -> list[str]:
    """The fenced blocks of the page whose first line is the marker, moved down to their line numbers in the page."""
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(rf"^```{marker}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, fence.start(1)) + fence[1] for fence in fences]


RUNNABLE = {page: blocks for page, marker in PAGES.items() if (blocks := python_blocks(page, marker))}


def test_readme_has_python():
    assert ROOT / "README.md" in RUNNABLE


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in RUNNABLE[page]:
        exec(compile(block, page, "exec"), namespace)


@pytest.mark.parametrize("command", COMMANDS)
def test_ci_runs_the_readme_commands(command):
    readme, ci = (ROOT / name for name in ("README.md", ".ci/run"))
    assert command in readme.read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in ci.read_text(encoding="utf-8").splitlines()]
    install, run = command.split(" && ")
    assert install in lines
    assert any(line == run or line.startswith(run + " ") for line in lines)


# Figures --------------------------------------------------------------------------------------------------------------


def lines_of(file: str) -> list[dict]:
    """Raw lines of a benchmark."""
    return list(map(json.loads, (ROOT / "benchmarks/results" / file).read_text().splitlines()))


def speedup(file: str, key: str, **case: object) -> str:
    """The speed-up in the one measurement of a case in a file of raw lines."""
    found = [line[key] for line in lines_of(file) if line.items() >= case.items()]
    assert len(found) == 1
    return f"{found[0]:.2f}x"


STEPS = (0.5, 0.75, 0.9)
"""Sparsities of the table of speed."""
COMPARED = {
    "dense": "dense",
    "half of the blocks, softplus gate": "dynamic-softplus-0.5",
    "half of the blocks, softplus gate of rank 32": "dynamic-low-rank-0.5",
    "half of the blocks, no gate: norms": "dynamic-norm-0.5",
    "half of the blocks, the same for every input": "dynamic-bias-0.5",
    "half of the weights, pruned by magnitude": "magnitude-0.5",
    "narrower dense model, as costly as the softplus gate's": "dense-equal-0.5",
}
"""Rows of the README's table of perplexities, and the variants in them."""


def perplexities(preset: str, variant: str) -> list[float]:
    """Of the test split, of each seed that is finished."""
    files = (ROOT / "benchmarks/results/quality" / preset / variant).glob("seed*.json")
    return [json.loads(file.read_text())["test_perplexity"] for file in files]


def perplexity(preset: str, variant: str) -> str:
    """Mean over seeds, and how many; a dash where no run is finished."""
    found = perplexities(preset, variant)
    return f"{sum(found) / len(found):.1f} ({len(found)})" if found else "-"


def test_the_figures_are_those_of_the_raw_lines():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    float32, text = {"dtype": "float32"}, " ".join(readme)
    published = json.loads((ROOT / "benchmarks/results/quality/ptb-lstm-zaremba/dense/seed0.json").read_text())
    assert f"Zaremba et al. 2014 has {published['test_perplexity']:.1f} here" in text
    for words, variant in COMPARED.items():
        cells = [perplexity(preset, variant) for preset in ("ptb-lstm-small", "ptb-qrnn-small")]
        if variant == "dynamic-low-rank-0.5":
            assert PRESETS["ptb-qrnn-small"].model.gate_rank == 32
            cells[1] = "as above"
        assert f"| {words} | {' | '.join(cells)} |" in readme
    variants = ("dense", "dynamic-softplus-0.5", "magnitude-0.5")
    found = {cell: {name: perplexities(f"ptb-{cell}-small", name) for name in variants} for cell in ("lstm", "qrnn")}
    assert [[len(seeds) for seeds in variant.values()] for variant in found.values()] == [[3, 4, 3], [3, 3, 3]]
    below = []
    for variant in found.values():
        for other in ("dense", "magnitude-0.5"):
            gap, hundredth = (
                difference(variant["dynamic-softplus-0.5"], variant[other]),
                mean(variant[other]).value / 100,
            )
            below.append(f"{-gap.value / hundredth:.1f} ± {gap.half_width / hundredth:.1f}% below")
    ends = "On the LSTM the softplus gate ends {} dense and {} pruning, on the QRNN {} dense and {} pruning".format(
        *below
    )
    assert f"{ends} (95% intervals, three seeds each, four of the softplus gate on the LSTM)" in text
    lstm = found["lstm"]
    (linear,) = perplexities("ptb-lstm-small", "dynamic-linear-0.5")
    above = 100 * (linear / mean(lstm["dense"]).value - 1)
    ends = f"{abs(above):.1f}% {'above' if above > 0 else 'below'} dense, with AdamW and one seed"
    assert f"Linear gates, the paper's, end {ends}" in text
    norms = perplexities("ptb-lstm-small", "dynamic-norm-0.5")
    gap, hundredth = difference(norms, lstm["magnitude-0.5"]), mean(lstm["magnitude-0.5"]).value / 100
    ends = f"{-gap.value / hundredth:.1f} ± {gap.half_width / hundredth:.1f}% lower"
    assert len(norms) == 2
    assert f"norms end {ends} (two seeds of norms)" in text
    names = ("dense-equal-0.5", "dynamic-softplus-0.5", "dynamic-norm-0.5")
    shares = [relative_times(ROOT / "benchmarks" / "results")["ptb-lstm-small"][name] for name in names]
    said = (
        "takes {:.2f} of dense's time for a token on one core, half of the blocks {:.2f} with a full softplus gate and"
    )
    assert f"{said} {{:.2f}} with norms".format(*shares) in text
    losing = {"rows": 16, "sparsity": 0.5}
    over_blas = [
        speedup("cpu_kernels_decode_blas.jsonl", "speedup_layer_over_dense_blas", hidden=hidden, **losing, **float32)
        for hidden in (1536, 2048, 4096)
    ]
    assert f"a layer runs at {min(over_blas)} to {max(over_blas)} of NumPy's BLAS" in text
    times = [line["dynamic_over_dense"] for line in lines_of("cpu_train_step.jsonl") if line.get("keeps_freed_memory")]
    assert f"a step takes {min(times):.2f} to {max(times):.2f} times as long" in text
    for words, sparsity in zip(("1/2", "3/4", "9/10"), STEPS, strict=True):
        product, model = (
            [speedup(f"cpu_{name}.jsonl", key, hidden=h, sparsity=sparsity, **case, **float32) for h in sizes]
            for name, key, sizes, case in (
                ("kernels_decode_blas", "speedup_layer_over_dense_blas", (1536, 4096), {"rows": 1}),
                (
                    "decode_one_core",
                    "speedup_over_dense",
                    (4096,),
                    {"cell": "lstm", "batch": 1, "gate_source": "learned"},
                ),
            )
        )
        assert f"| {words} | {' | '.join(product + model)} |" in readme
    norms = {"hidden": 4096, "cell": "lstm", "batch": 1, "gate_source": "norm"}
    free = [speedup("cpu_decode_one_core.jsonl", "speedup_over_dense", sparsity=s, **norms, **float32) for s in STEPS]
    assert "if norms choose the blocks, without a gate, it is {}, {} and {}".format(*free) in text
    gated = [row.split(" | ")[-1].removesuffix(" |") for row in readme if row.startswith(("| 1/2", "| 3/4", "| 9/10"))]
    assert "an LSTM of 2 x 4096 runs at {}, {} and {} of dense on a CPU core".format(*gated) in text


def test_what_quick_ends_with_is_what_its_runs_ended_with():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    found: dict[tuple[int, bool], dict[int, float]] = {}
    *others, shown = lines_of("cpu_quick.jsonl")
    xeon = [line for line in others if "Xeon" in line["processor"]]
    assert f"validation perplexity   {shown['validation_perplexity']:.2f}, at step 300" in text
    rates = shown["decode_tokens_per_second"], shown["dense_decode_tokens_per_second"], shown["decode_speedup"]
    assert "{:,.0f} tokens/s, dense of the same size {:,.0f}: {:.2f}x".format(*rates) in text
    assert f"from two cores of an {shown['processor']}" in text
    narrow = [
        line
        for file in ("cpu_decode_small.jsonl", "cpu_decode_widths.jsonl")
        for line in lines_of(file)
        if line.items() >= {"cell": "lstm", "batch": 1, "sparsity": 0.5}.items() and line["hidden"] < 1024
    ]
    ratios = [*(line["decode_speedup"] for line in (*others, shown)), *(line["speedup_over_dense"] for line in narrow)]
    slowest = min(narrow, key=lambda line: line["speedup_over_dense"])
    assert slowest["gate_rank"] is None
    assert f"a model decodes there at {min(ratios):.2f}x (a full gate) to {max(ratios):.2f}x of dense" in text
    for line in xeon:
        where = line["cores"], "2 of them" in line["device"]
        found.setdefault(where, {})[line["seed"]] = line["validation_perplexity"]
    seeds = found[1, False]
    speeds = [line["decode_speedup"] for line in xeon if line["cores"] == 1]
    assert f"at {min(speeds):.2f}x to {max(speeds):.2f}x on one core" in text
    assert len(seeds) == 5
    assert max(seeds.values()) < 1.05 * min(seeds.values())
    assert f"five seeds end between {min(seeds.values()):.1f} and {max(seeds.values()):.1f} on one" in text
    two = found[2, False][0], found[2, True][0]
    assert f"seed 0 has {seeds[0]:.2f} there, {two[0]:.2f} on two cores and {two[1]:.2f} on two devices" in text
