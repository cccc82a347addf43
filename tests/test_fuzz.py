"""The search for bad input: its targets run, what it finds is told, and the documentation has its figures."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuzz, test_bad_arguments, test_bad_checkpoints, test_bad_input
from tests.fuzz import ROOT, TARGETS, Search, property_of

LINES = ROOT / "docs" / "results" / "reliability" / "bad_input.jsonl"
SECTION = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").partition("\n## Bad input\n")[2]


def search(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def figures(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_property_is_a_target():
    modules = (test_bad_input, test_bad_checkpoints, test_bad_arguments)
    properties = {test for module in modules for test in vars(module).values() if hasattr(test, "hypothesis")}
    assert {property_of(target) for target in TARGETS} == properties
    assert len(TARGETS) == len(properties)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_takes_the_bytes_of_a_fuzzer(target):
    choose = random.Random(target)
    tried = [property_of(target).hypothesis.fuzz_one_input(choose.randbytes(1024)) for _ in range(4)]
    # None: too few bytes to draw an input from. Else the bytes that were needed.
    assert [data for data in tried if data is not None]


@pytest.mark.parametrize(
    "options",
    [
        ["--hypothesis"],
        pytest.param(
            [],
            marks=pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="Atheris is not installed."),
        ),
    ],
    ids=["hypothesis", "atheris"],
)
def test_a_search_writes_its_figures(tmp_path, options):
    output = tmp_path / "found.jsonl"
    done = search("num-kept", "--runs", "20", *options, "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = figures(output)
    assert found["target"] == "num-kept"
    assert found["driver"] == ("hypothesis" if options else "atheris")
    assert found["inputs_tried"] >= 20
    assert found["failures"] == []
    assert re.fullmatch("[0-9a-f]{40}", found["revision"])
    assert isinstance(found["modified"], bool)
    assert found["command"].startswith("python -m tests.fuzz num-kept --runs 20")
    assert found["versions"]["jax"]


def test_without_atheris_the_way_out_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["fuzz", "num-kept"])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    assert ended.value.code == 2
    assert "or search with --hypothesis" in capsys.readouterr().err


def test_an_unknown_target_is_named():
    done = search("num-keep")
    assert done.returncode == 2
    assert "there is no target 'num-keep'" in done.stderr


def test_a_failure_is_kept_once_for_each_place_and_fails_the_search(tmp_path, capsys):
    found = Search("num-kept", runs=3, seconds=1.0)
    for text in ("a", "b"):
        try:
            raise TypeError(text)
        except TypeError as error:
            found.note(error, b"\x01\xff")
    found.note(KeyError("c"))
    first, second = found.result(driver="atheris")["failures"]
    assert (first["error"], first["input"]) == ("TypeError: a", "01ff")
    assert first["at"].startswith("tests/test_fuzz.py:")
    assert (second["error"], second["at"]) == ("KeyError: 'c'", "?")
    assert fuzz.report([found.result()], tmp_path / "found.jsonl") == 1
    assert "0 inputs, 2 failures" in capsys.readouterr().out
    assert figures(tmp_path / "found.jsonl")[0]["failures"] == [first, second]


# --- what was committed


def test_the_documentation_has_the_committed_figures():
    lines = figures(LINES)
    assert [line["target"] for line in lines] == list(TARGETS)
    total, failures = sum(line["inputs_tried"] for line in lines), sum(len(line["failures"]) for line in lines)
    assert {line["driver"] for line in lines} == {"atheris"}
    section = " ".join(SECTION.split())
    assert f" for each of {len(lines)} targets," in section
    assert f" {total:,} inputs, {failures} failures" in section


def test_the_committed_figures_are_of_one_revision_and_one_command():
    (made_with,) = {(line["revision"], line["modified"], line["command"]) for line in figures(LINES)}
    revision, modified, command = made_with
    assert not modified
    assert f"revision {revision[:7]}" in " ".join(SECTION.split())
    assert f"\n{command}\n" in SECTION
