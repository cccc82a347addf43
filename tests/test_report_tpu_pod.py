"""The page on TPU slices: committed as the raw lines give it, and right about lines that are made up."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.report import tpu_pod

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra plots")


@pytest.fixture
def report():
    """The module, as ``python benchmarks/report.py`` imports it."""
    return tpu_pod


def files(docs: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(docs.glob("tpu_pod*"))}


def test_the_committed_page_is_what_the_raw_lines_give(report, tmp_path):
    report.write(RESULTS, tmp_path)
    made, committed = files(tmp_path), files(ROOT / "docs")
    assert made.keys() == committed.keys() == {"tpu_pod.md", "tpu_pod.svg"}
    for name, content in made.items():
        # Another matplotlib draws with other coordinates, and names itself.
        if name.endswith(".md") or f"Matplotlib v{matplotlib.__version__}," in committed[name].decode():
            assert content == committed[name], f"{name} is not up to date: run python benchmarks/report.py"


def test_plots_are_drawn_alike_twice(report, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        report.write(RESULTS, tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "other")


ENVIRONMENT = {
    "benchmark": "environment",
    "processor": "Chip",
    "cores": 2,
    "python": "3.11.7",
    "jax": "0.10.2",
    "libtpu": "0.0.52",
    "revision": "0123456789abcdef",
    "command": "python benchmarks/pod_compile.py",
}


def line(rows, **changes):
    return {
        "benchmark": "pod_compile",
        "preset": "ptb-lstm",
        "topology": "v5e:16x16",
        "chips": 256,
        "data": 256,
        "model": 1,
        "shard_optimizer": False,
        "rows": rows,
        "batch": 256 * rows,
        "sequence_length": 35,
        "vocab": 10_000,
        "parameter_bytes": 288_000_000,
        "optimizer_bytes": 4,
        "activation_bytes": 60_000_000,
        "temporary_bytes": 360_000_000,
        "code_bytes": 20_000_000,
        "memory_bytes": 672_000_000,
        "kernel_calls": 220,
        "kernel_vmem_limit": 40_000_000,
        "kernel_vmem_used": 16_000_000,
        "flops": 12_000_000_000 * rows,
        "kernel_flops": 8_000_000_000 * rows,
        "xla_flops": 31_000_000_000,
        "hbm_traffic": 3_540_000_000,
        "collectives": {"all-reduce": {"count": 3, "bytes": 288_000_008, "sent": 574_000_000}},
        "compute_ms": 0.25 * rows,
        "memory_ms": 4.0,
        "interconnect_ms": 3.0,
    } | changes


@pytest.fixture
def page(report, tmp_path):
    """A function from raw lines to the text of the page."""

    def make(*rows):
        raw = [ENVIRONMENT, *rows]
        (tmp_path / "tpu_pod_compile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
        report.write(tmp_path, tmp_path)
        return (tmp_path / "tpu_pod.md").read_text()

    return make


def test_bounds_and_what_more_chips_give(page, tmp_path):
    text = page(line(32), line(8))
    head = "| `ptb-lstm` | v5e:16x16 |"
    assert f"{head} data 256 | 2,048 | 288 MB | 4 B | 360 MB | 60.0 MB | 20.0 MB | 672 MB, 3.9% | 16.0 MB" in text
    assert f"{head} data 256 | 8 | 96.0 GFLOP | 67% | 31.0 GFLOP | 220 | 3.54 GB | 3, 574 MB |" in text
    # 8 rows: memory before compute, then the messages; 32: compute.
    assert f"{head} data 256 | 8 | 2,048 | 2.00 ms | 4.00 ms | 3.00 ms | 7.00 ms | 10.2 M | 29% | 4% |" in text
    assert f"{head} data 256 | 32 | 8,192 | 8.00 ms | 4.00 ms | 3.00 ms | 11.0 ms | 26.1 M | 73% | 4% |" in text
    assert f"{head} 32 to 8 | x 4 | 11.0 to 7.00 ms, x 1.57 | x 2.55 |" in text
    picture = (tmp_path / "tpu_pod.svg").read_text()
    assert "ptb-lstm, v5e:16x16" in picture
    assert not re.search(r"^\{\w+\}$", text, re.MULTILINE)


def test_other_meshes_stand_beside_the_plain_one_of_the_same_batch(page):
    text = page(line(8), line(16), line(32, data=64, model=4, batch=2048))
    part = text[text.index("## Other meshes") : text.index("## What ran")]
    assert "| data 64, model 4 | 32 | 2,048 |" in part
    assert "| data 256 | 8 | 2,048 |" in part
    assert "| data 256 | 16 |" not in part
    before = text[: text.index("## Other meshes")]
    assert "model 4 |" not in before


def test_of_equal_cases_the_later_one_counts(page):
    text = page(line(8, memory_ms=5.0), line(8))
    assert text.count("| 2,048 | 2.00 ms |") == 1
    assert "| 2,048 | 2.00 ms | 4.00 ms |" in text


def test_without_cases_there_is_no_picture(page, tmp_path):
    assert page().count("Nothing has been compiled yet.") == 7
    assert not list(tmp_path.glob("*.svg"))
