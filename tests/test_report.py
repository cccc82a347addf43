"""The pages that are made from raw results: committed as the raw lines give them, and right about what ran where."""

import csv
import json
import re
from pathlib import Path

import pytest

from benchmarks.report import performance

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra plots")


@pytest.fixture
def report():
    """The module, as ``python benchmarks/report.py`` imports it."""
    return performance


def files(docs: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(docs.glob("performance*"))}


def test_the_committed_page_is_what_the_raw_lines_give(report, tmp_path):
    report.write(RESULTS, tmp_path)
    made, committed = files(tmp_path), files(ROOT / "docs")
    assert made.keys() == committed.keys()
    for name, content in made.items():
        # Another matplotlib draws with other coordinates, and names itself.
        if name.endswith(".md") or f"Matplotlib v{matplotlib.__version__}," in committed[name].decode():
            assert content == committed[name], f"{name} is not up to date: run python benchmarks/report.py"


def test_plots_are_drawn_alike_twice(report, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        report.write(RESULTS, tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def environment(platform="cpu", **changes):
    return {
        "benchmark": "environment",
        "device": "cpu" if platform == "cpu" else "NVIDIA H200",
        "platform": platform,
        "devices": 1,
        "cores": 2,
        "processor": "Chip",
        "python": "3.11.7",
        "jax": "0.10.2",
        "revision": "0123456789abcdef",
        "command": "python benchmarks/kernels.py",
    } | changes


def decode_row(**changes):
    return {
        "benchmark": "decode",
        "rows": 1,
        "hidden": 1536,
        "block": 128,
        "dtype": "float32",
        "sparsity": 0.75,
        "share_read": 0.25,
        "dense_us": 2000.0,
        "dense_quartiles_us": [1900.0, 2000.0, 2234.0],
        "product_us": 500.0,
        "product_quartiles_us": [490.0, 500.0, 512.5],
        "layer_us": 800.0,
        "layer_quartiles_us": [790.0, 800.0, 850.0],
        "speedup_product": 4.0,
        "speedup_layer": 2.5,
        "bound_us": 250.0,
    } | changes


@pytest.fixture
def page(report, tmp_path):
    """A function from raw files to the text of the page."""

    def make(**raw):
        for name, rows in raw.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report.write(tmp_path, tmp_path)
        return (tmp_path / "performance.md").read_text()

    return make


def test_a_case_becomes_a_line_of_its_table(page, tmp_path):
    left_out = {"benchmark": "left_out", "reason": "H 9 takes 9 GiB"}
    text = page(times=[environment(), decode_row(), decode_row(rows=4, hidden=512), left_out])
    assert "| Chip, 2 cores | 1536 | 128 | float32 | full | 1 | 0.75 | 2.00 ms (1.90-2.23) | 500 µs (490-512) |" in text
    assert "800 µs (790-850) | 4.00 | 2.50 |" in text
    assert "- H 9 takes 9 GiB." in text
    assert "| Chip, 2 cores | jax 0.10.2, Python 3.11.7 | 2 decode | `01234567` | [times.jsonl]" in text
    assert not re.search(r"^\{\w+\}$", text, re.MULTILINE)
    picture = (tmp_path / "performance_decode.svg").read_text()
    assert "Chip, 2 cores" in picture
    assert "1 / density" in picture
    # What is not on the page is in the file.
    assert "| 512 |" not in text
    assert "All 2 cases: [performance_decode.csv](performance_decode.csv)." in text
    header, *lines = (tmp_path / "performance_decode.csv").read_text().splitlines()
    assert header.startswith("hardware,rows,hidden,")
    assert [line["rows"] for line in csv.DictReader([header, *lines])] == ["1", "4"]


def test_what_is_the_same_in_every_line_is_said_once(page):
    text = page(times=[environment(), decode_row(), decode_row(sparsity=0.5)])
    assert "In every line: hardware Chip, 2 cores, H 1536, block 128, type float32, gate rank full, rows 1," in text
    assert "| sparsity |\n| --- |\n| 0.75 |\n| 0.5 |\n" in text


def test_the_batch_of_a_training_step_is_that_of_the_run(page):
    """The preset's batch may have changed since. Here 3,200 tokens a second for 0.7 s are 64 x 35."""
    row = {"benchmark": "train_step", "preset": "quick", "rows": 64, "sparsity": 0.5, "tokens_per_second": 3200.0}
    times = {"dense_ms": 500.0, "dynamic_ms": 700.0, "dynamic_over_dense": 1.4, "dense_bound_ms": 9.0, "bound_ms": 10.0}
    quartiles = {f"{name}_quartiles_ms": [490.0, 500.0, 510.0] for name in ("dense", "dynamic")}
    text = page(times=[environment(), row | times | quartiles])
    assert "| `quick` | 64 x 35 | float32 | 0.5 | 500 ms" in text


def test_it_says_what_has_run_on_hardware_and_what_has_only_been_compiled(page):
    on_cpu = page(cpu=[environment(), decode_row()])
    assert "**No NVIDIA GPU has run" in on_cpu
    assert "**No TPU has run" in on_cpu
    on_gpu = page(gpu=[environment("gpu"), decode_row()])
    assert "NVIDIA H200, 1 device" in on_gpu
    assert "No NVIDIA GPU has run" not in on_gpu
    assert "**No TPU has run" in on_gpu


def test_other_raw_files_are_none_of_its_business(page):
    text = page(
        other=[{"perplexity": 80.0}, {"benchmark": "cell", "perplexity": 80.0}], cpu=[environment(), decode_row()]
    )
    assert "other.jsonl" not in text
    assert "perplexity" not in text


def test_without_cases_there_is_no_picture(page, tmp_path):
    assert "Nothing has been measured yet." in page(empty=[environment()])
    assert not list(tmp_path.glob("*.svg"))


def test_what_is_compared_besides_dense_stands_beside_it(page):
    beside = {"dense_blas_us": 600.0, "dense_blas_quartiles_us": [590.0, 600.0, 610.0]}
    ratios = {"speedup_product_over_dense_blas": 1.2, "speedup_layer_over_dense_blas": 0.75}
    text = page(times=[environment(modified=True), decode_row(**beside, **ratios)])
    assert "| dense, NumPy's BLAS |" in text
    assert "| 600 µs (590-610) |" in text
    assert "| 4.00 | 2.50 | 1.20 | 0.75 |" in text
    assert "`01234567` with changes" in text


def test_a_gpu_has_a_table_of_its_own_with_the_last_run_of_each_case(page):
    rows = [decode_row(layer_us=time, layer_quartiles_us=[time] * 3) for time in (500.0, 400.0)]
    text = page(one=[environment("gpu"), rows[0]], two=[environment("gpu", revision="fedcba9876543210"), rows[1]])
    line = "| layer, H 1536 | float32 | 0.75 | {} | 2.00 ms (1.90-2.23) | 2.50x | NVIDIA H200, `{}` |"
    assert line.format("400 µs (400-400)", "fedcba9") in text
    assert "500 µs (500-500)" not in text
