"""The page that says whether skipping pays, made of raw lines."""

import json
import re
from pathlib import Path

from benchmarks.report.decision import write

ROOT = Path(__file__).parents[1]

ENVIRONMENT = {
    "benchmark": "environment",
    "platform": "cpu",
    "processor": "Some CPU",
    "cores": 1,
    "devices": 1,
    "python": "3.11.7",
    "jax": "0.10.2",
    "revision": "0123456789abcdef",
    "command": "python benchmarks/decode.py --hidden 512",
}


def case(sparsity, dynamic_us, **others):
    return {
        "benchmark": "model_decode",
        "cell": "lstm",
        "hidden": 512,
        "dtype": "float32",
        "batch": 1,
        "sparsity": sparsity,
        "dense_us": 300.0,
        "dense_quartiles_us": [1.0, 2.0, 3.0],
        "dense_bound_us": 2.0,
        "bound_us": 1.0,
        "dynamic_us": dynamic_us,
        **others,
    }


def test_a_cell_is_the_speed_over_the_fastest_dense_and_leads_to_its_line(tmp_path):
    lines = [
        ENVIRONMENT,
        case(0.5, 100.0),
        case(0.75, 100.0, pytorch_us=90.0),
        case(0.9, 50.0),
        case(0.9, 300.0),  # a later line of the same case counts
        case(0.9, 10.0, gate_source="norm"),  # but not one of another method
    ]
    (tmp_path / "cpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    docs = tmp_path / "docs"
    docs.mkdir()

    write(tmp_path, docs)

    page = (docs / "should_i_use_it.md").read_text()
    assert "\n### Some CPU, 1 core\n" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| float32 | 512 |")]
    cells = re.findall(r"\[([^]]*)\]\(raw_lines\.md#([^)]*)\)", row)
    assert [shown for shown, _ in cells] == ["**3.00**", "*0.90*", "1.00"]
    raw = (docs / "raw_lines.md").read_text()
    for (_, anchor), line in zip(cells, (lines[1], lines[2], lines[4]), strict=True):
        after = raw.split(f'<a id="{anchor}"></a>')[1]
        assert json.loads(after.split("```json\n")[1].split("\n```")[0]) == line


def test_the_committed_pages_are_what_the_raw_lines_give(tmp_path):
    write(ROOT / "benchmarks" / "results", tmp_path)
    for page in tmp_path.glob("*.md"):
        assert page.read_bytes() == (ROOT / "docs" / page.name).read_bytes(), "run python benchmarks/report.py decision"
