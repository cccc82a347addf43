"""The command ``bwds``: its table, what it says without the packages of an extra, and that the wheel brings it."""

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import tiny_run
from called import assert_refused, call

import bwds
from bwds.cli import bench, command, run
from bwds.config import ModelConfig
from bwds.timing import Timing, time_in_turns, verdict

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and configuration of a run that ``bwds train`` has made."""
    folder = tmp_path_factory.mktemp("command")
    config = tiny_run.config(tiny_run.write_corpus(folder / "text"), steps=4, eval_every=4, checkpoint_every=4)
    assert command.main(["train", *tiny_run.arguments(config, folder / "run")]) == 0
    return folder / "run", config


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_every_command(capsys, arguments):
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, "")
    for name, (_, tells) in command.COMMANDS.items():
        assert re.search(rf"^ +bwds {name} +{re.escape(tells)}$", out, re.M)


def test_the_version_is_that_of_the_package(capsys):
    assert call(capsys, "--version") == (0, f"bwds {bwds.__version__}\n", "")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_help_of_its_own(capsys, name):
    assert callable(importlib.import_module(command.COMMANDS[name][0]).main)
    code, out, _ = call(capsys, name, "--help")
    assert code == 0
    assert f"usage: bwds {name} " in re.sub(r"\x1b\[[0-9;]*m", "", out)


def test_an_error_of_the_system_is_told_without_its_number(capsys, tmp_path):
    def opens(_):
        (tmp_path / "gone").open()

    assert run(opens, "bwds train", []) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone'}: No such file or directory.\n"


def test_a_mistake_is_one_sentence_that_points_to_the_help_of_its_command(capsys):
    assert_refused(call(capsys, "trian"), "Unknown command 'trian'", "train, eval, generate", "See bwds --help.")
    assert_refused(call(capsys, "train", "--model.sparsity", "1"), "sparsity is 1.0", "See bwds train --help.")
    assert_refused(call(capsys, "train", "--train.steps", "5", "ptb-lstm"), "first argument: bwds train ptb-lstm")
    assert_refused(call(capsys, "bench", "--hidden", "100"), "hidden_size 100", "See bwds bench --help.")
    assert_refused(call(capsys, "bench", "--turns", "2"), "turns is 2")
    assert_refused(call(capsys, "bench", "--steps", "0"), "steps is 0")
    assert_refused(call(capsys, "generate", "/nowhere", "a"), "There is no file '/nowhere'")
    assert_refused(call(capsys, "generate"), "RUN")


def test_it_runs_from_any_folder_and_as_a_module(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "bwds", "--version"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"bwds {bwds.__version__}\n")


WITHOUT = """
import sys
for name in {missing}:
    sys.modules[name] = None
from bwds.cli.command import main
sys.exit(main({arguments}))
"""


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (["tyro"], ["train"], "train"),
        (["orbax"], ["train", "--data.dataset", "text", "--data.directory", "TEXT", "--workdir", "RUN",
          "--data.batch-size", "2", "--data.sequence-length", "4"], "train"),
        (["tokenizers"], ["train", "--data.dataset", "text", "--data.directory", "TEXT", "--data.tokens", "subword"],
         "files"),
    ],
)  # fmt: skip
def test_without_an_extra_it_names_the_extra(tmp_path, missing, arguments, extra):
    places = {"TEXT": str(tiny_run.write_corpus(tmp_path / "text")), "RUN": str(tmp_path / "run")}
    code = WITHOUT.format(missing=missing, arguments=[places.get(word, word) for word in arguments])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert f"Python package '{missing[0]}', which is not installed: it comes with the extra '{extra}'" in done.stderr
    assert f'pip install -e ".[{extra}]"' in done.stderr


def test_help_needs_no_extra(tmp_path):
    for arguments in (["--help"], ["--version"]):
        code = WITHOUT.format(missing=["tyro", "orbax", "tokenizers", "tqdm"], arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_train_eval_and_generate_are_those_of_the_scripts(finished, capsys):
    """The same run: its own command finds it finished, and so does the script."""
    workdir, config = finished
    code, out, _ = call(capsys, "train", *tiny_run.arguments(config, workdir))
    assert code == 0
    assert re.search(rf"^Evaluate with: .*bwds eval --workdir {workdir}$", out, re.M)
    code, out, _ = call(capsys, "eval", "--workdir", str(workdir))
    assert code == 0
    perplexity = out.splitlines()[-1]
    import eval as script

    script.main(["--workdir", str(workdir)])
    assert capsys.readouterr().out.splitlines()[-1] == perplexity
    _, text, _ = call(capsys, "generate", str(workdir), "w1 w3", "--tokens", "9")
    script.main(["--workdir", str(workdir), "--generate", "w1 w3", "--words", "9"])
    assert capsys.readouterr().out == text
    assert text.startswith("w1 w3")


def test_on_a_terminal_the_text_comes_token_by_token(finished, capsys, monkeypatch):
    """And is the one that a pipe gets."""
    workdir, _ = finished
    arguments = ["generate", str(workdir), "w1  w3\nw2", "--tokens", "30"]
    whole = call(capsys, *arguments)
    written: list[str] = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", written.append)
    code, _, err = call(capsys, *arguments)
    assert (code, "".join(written), err) == whole
    assert "\n" in whole[1].strip()
    assert len([piece for piece in written if piece]) > 30


def test_several_prompts_are_continued_together(finished, capsys):
    workdir, _ = finished
    code, out, err = call(capsys, "generate", str(workdir), "w1 w3", "w2", "", "--tokens", "4", "--temperature", "0")
    assert (code, err) == (0, "")
    alone = [
        call(capsys, "generate", str(workdir), p, "--tokens", "4", "--temperature", "0")[1] for p in ("w1 w3", "w2", "")
    ]
    assert out == "\n".join(alone)
    assert_refused(call(capsys, "generate", str(workdir), "w1", "zebra"), "'zebra' is not in the vocabulary")


def test_a_prompt_may_be_empty_or_unknown(finished, capsys):
    workdir, _ = finished
    code, out, _ = call(capsys, "generate", str(workdir), "--tokens", "5", "--temperature", "0")
    assert code == 0
    assert out.strip()
    assert_refused(call(capsys, "generate", str(workdir), "zebra"), "'zebra' is not in the vocabulary")


def test_bench_measures_what_it_says(capsys):
    code, out, _ = call(
        capsys,
        *("bench", "--hidden", "32", "64", "--sparsity", "0.5", "--block-size", "16", "--gate-rank", "2"),
        *("--vocab", "20", "--turns", "3", "--steps", "2"),
    )
    assert code == 0
    assert re.search(r"^2 x 32 +dense +[\d.,]+ +0.5 skipped +[\d.,]+ \(\d+\.\d\dx\)$", out, re.M)
    assert re.search(r"^2 x 64 ", out, re.M)
    pays = (
        r"Skipping pays at (sparsity 0.5 from a width of \d+ on|no measured width at sparsity 0.5), against the dense"
    )
    assert re.search(pays, out)


def test_bench_times_the_models_that_it_names(monkeypatch):
    """Dense and each sparsity, at the width: what is compiled is what the configuration says."""
    seen = []
    rollout = bwds.generate.greedy_rollout

    def watched(lm, *arguments, **options):
        seen.append(lm)
        return rollout(lm, *arguments, **options)

    monkeypatch.setattr("bwds.decode_speed.greedy_rollout", watched)
    config = ModelConfig(vocab_size=20, hidden_size=32, block_size=16, gate_rank=2, gate_activation="softplus")
    times = bench.measure(config, (0.5, 0.75), steps=2, turns=3)
    assert times.keys() == {"dense", 0.5, 0.75}
    assert all(0.0 < time.median < 10.0 for time in times.values())

    expected = [
        dataclasses.replace(config, method="dense"),
        *(dataclasses.replace(config, sparsity=s) for s in (0.5, 0.75)),
    ]
    assert set(seen) == set(map(bwds.language_model, expected))


@pytest.mark.parametrize(("quartiles", "busy"), [((0.9, 1.0, 1.1), False), ((0.9, 1.0, 1.2), True)])
def test_bench_says_when_its_measurements_differ(monkeypatch, capsys, quartiles, busy):
    monkeypatch.setattr(bench, "measure", lambda *_, **__: {"dense": Timing((1.0, 1.0, 1.0)), 0.5: Timing(quartiles)})
    code, out, _ = call(capsys, "bench", "--hidden", "128", "--sparsity", "0.5")
    assert code == 0
    assert ("The machine is busy: the quartiles of a model's times lie 30% of the median apart" in out) is busy


def test_turns_alternate_and_the_slower_function_is_slower():
    order = []
    calls = {name: lambda name=name, s=s: (order.append(name), time.sleep(s))[0] for name, s in (("a", 0), ("b", 0.02))}
    times = time_in_turns(calls, turns=3, least=0.0)
    assert times["b"].median > 0.015 > times["a"].median
    assert "".join(order[-12:]) == "aabb" * 3
    with pytest.raises(ValueError, match="quartiles need at least 3"):
        time_in_turns(calls, turns=2)


def test_the_verdict_asks_for_all_larger_widths():
    found = {0.9: {512: 1.2, 1024: 1.03, 2048: 2.0}, 0.5: {512: 0.9, 1024: 0.8}, 0.75: {512: 1.1, 1024: 1.5}}
    assert verdict(found, "dense") == (
        "Skipping pays at sparsity 0.75 from a width of 512 on, at sparsity 0.9 from a width of 2048 on, "
        "but at no measured width at sparsity 0.5, against dense."
    )
    assert verdict({s: {512: 1.0} for s in (0.5, 0.9)}, "dense") == (
        "Skipping pays at no measured width at sparsity 0.5 or 0.9, against dense."
    )


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree, built by the tool that a release takes."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_the_two_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"bwds-{bwds.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"bwds", "pallas_kernels", info}
    assert not [name for name in names if "test" in name or "benchmark" in name]
    tracked = subprocess.run(["git", "ls-files", "bwds", "pallas_kernels"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert set(tracked.stdout.split()) <= set(names)


def test_the_wheel_has_the_command_and_its_types(wheel, tmp_path):
    """Unpacked somewhere else it runs, without the clone."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    info = tmp_path / f"bwds-{bwds.__version__}.dist-info"
    assert "bwds = bwds.cli.command:main" in (info / "entry_points.txt").read_text()
    assert (tmp_path / "bwds/py.typed").is_file()
    code = "import sys, bwds; from bwds.cli.command import main; print(bwds.__file__); sys.exit(main(['--help']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(tmp_path)
    assert "bwds generate" in done.stdout


def test_what_an_index_shows_is_whole(wheel):
    """``twine check`` reads the description as an index would; no text is left to be filled in."""
    twine = shutil.which("twine", path=str(Path(sys.executable).parent))
    assert twine is not None, "twine comes with the extra dev"
    done = subprocess.run([twine, "check", "--strict", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"bwds-{bwds.__version__}.dist-info/METADATA").decode()
    assert "Project-URL: Paper, https://arxiv.org/abs/2001.04686" in metadata
    assert not re.search(r"example\.(com|org)|OWNER|TODO|PLACEHOLDER", metadata)
