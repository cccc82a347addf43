"""Looks for inputs that break the properties of the tests of bad input.

    python -m tests.fuzz [TARGET ...] [--seconds 60 | --runs N] [--hypothesis] [--seed 0] [--output FILE]

Every search is guided by coverage: Atheris (libFuzzer) changes the bytes that Hypothesis draws its values from, and
keeps those that reach new code of bwds and pallas_kernels. Arrays have few shapes, so that nothing has to be
compiled after the first inputs. With --hypothesis, Hypothesis searches alone. Every target runs in a process of its
own. Without a TARGET all are searched, --seconds each.

A failure is reported once for each place in the code, with the input in hexadecimal digits, to be tried again with
--input. It is also in Hypothesis' database, so that the test of the property fails with a small example of it.

Exit codes: 0 nothing was found; 1 something was; 2 a mistake on the command line.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TARGETS = {
    "text": "test_bad_input.test_a_text_is_read_by_the_rules_or_refused",
    "vocabulary": "test_bad_input.test_a_vocabulary_is_read_as_it_is_or_refused",
    "config": "test_bad_input.test_a_configuration_is_usable_or_refused",
    "config-file": "test_bad_input.test_a_damaged_configuration_file_is_usable_or_named",
    "metrics": "test_bad_input.test_metrics_are_lines_of_numbers_or_refused",
    "summary": "test_bad_input.test_a_summary_is_shown_or_refused",
    "train-options": "test_bad_input.test_a_command_line_gives_a_usable_configuration_or_an_error",
    "eval-options": "test_bad_input.test_a_command_line_of_eval_without_a_run_is_an_error",
    "checkpoints": "test_bad_checkpoints.test_a_damaged_checkpoint_gives_what_was_saved_or_is_refused",
    "run-folder": "test_bad_checkpoints.test_a_damaged_run_gives_what_was_saved_or_is_refused",
    "num-kept": "test_bad_arguments.test_kept_blocks_are_the_share_that_is_not_omitted",
    "gates": "test_bad_arguments.test_gates_agree_with_the_oracle_or_are_refused",
    "product": "test_bad_arguments.test_a_product_agrees_with_the_oracle_or_is_refused",
    "layout": "test_bad_arguments.test_a_layout_comes_back_or_is_refused",
    "cost": "test_bad_arguments.test_a_configuration_has_a_cost_and_an_equal_dense_one_or_is_refused",
    "model": "test_bad_arguments.test_a_model_takes_tokens_of_the_right_shape_alone",
    "sampling": "test_bad_arguments.test_a_word_is_drawn_at_any_temperature",
}
ROOT = Path(__file__).parents[1]
# Examples of one search by Hypothesis; the next has another seed.
BATCH = 50
# Imports, compilations and the last batch of a search take time beyond its seconds.
PATIENCE_S = 300.0


class Search:
    """What was tried for a target and what it found, until there was enough of it."""

    def __init__(self, target: str, *, runs: int | None, seconds: float) -> None:
        self.target, self.runs, self.seconds = target, runs, seconds
        self.calls = self.tried = 0
        self.failures: dict[str, dict[str, str]] = {}
        self.began = time.monotonic()

    def begin(self) -> None:
        """Time counts from here: all is imported."""
        self.began = time.monotonic()

    @property
    def enough(self) -> bool:
        if self.runs is not None:
            return self.tried >= self.runs
        return time.monotonic() - self.began > self.seconds

    def note(self, error: Exception, data: bytes | None = None) -> None:
        """Keeps a failure, unless there is one from the same place."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
        place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"
        told = {"error": f"{type(error).__name__}: {error}"[:500], "at": place}
        if data is not None:
            told["input"] = data.hex()
        if notes := getattr(error, "__notes__", []):
            told["example"] = "\n".join(notes)[:2000]
        self.failures.setdefault(f"{type(error).__name__} {place}", told)

    def result(self, **figures: Any) -> dict[str, Any]:
        figures = {"target": self.target, "inputs_tried": self.tried, **figures}
        return figures | {
            "failures": list(self.failures.values()),
            "seconds": round(time.monotonic() - self.began, 1),
        }


def property_of(target: str) -> Callable[..., Any]:
    module, name = TARGETS[target].split(".")
    return getattr(importlib.import_module(f"tests.{module}"), name)


def guided(search: Search, seed: int) -> None:
    """Prints what Atheris finds, and ends the process."""
    import atheris

    with atheris.instrument_imports(include=["bwds", "pallas_kernels"]):
        fuzz_one_input = property_of(search.target).hypothesis.fuzz_one_input
    corpus = Path(tempfile.mkdtemp(prefix="bwds-corpus-"))
    choose = random.Random(seed)
    # Shorter ones are too few bytes to draw all values from.
    for number in range(20):
        (corpus / str(number)).write_bytes(choose.randbytes(64 << choose.randrange(5)))

    search.begin()

    def one(data: bytes) -> None:
        search.calls += 1
        try:
            # None: too few bytes to draw an input from.
            search.tried += fuzz_one_input(data) is not None
        except Exception as error:
            search.tried += 1
            search.note(error, data)
        if search.enough:
            kept = len(os.listdir(corpus))
            print(json.dumps(search.result(driver="atheris", calls=search.calls, kept=kept)), flush=True)
            # This leaves out what libFuzzer would do at the end.
            os._exit(0)

    # If it ends the process, as for more than 2 GB of memory, the process that waits for this one reports it.
    options = [f"-seed={seed + 1}", "-max_len=2048", "-verbosity=0", "-timeout=120", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def searched(search: Search, seed: int) -> None:
    """Prints what Hypothesis finds by itself."""
    import hypothesis

    size = min(BATCH, search.runs or BATCH)
    phases = (hypothesis.Phase.generate, hypothesis.Phase.shrink)
    hypothesis.settings.register_profile(
        "fuzz", max_examples=size, deadline=None, phases=phases, suppress_health_check=list(hypothesis.HealthCheck)
    )
    hypothesis.settings.load_profile("fuzz")
    test = property_of(search.target)
    inner = test.hypothesis.inner_test

    def counted(*args: Any, **values: Any) -> None:
        search.tried += 1
        inner(*args, **values)

    test.hypothesis.inner_test = counted
    search.begin()
    while not search.enough:
        with contextlib.suppress(hypothesis.errors.Unsatisfiable):
            try:
                hypothesis.seed(seed)(test)()
            except BaseExceptionGroup as group:
                for error in group.exceptions:
                    search.note(error)
            except Exception as error:
                search.note(error)
        seed += 1
    print(json.dumps(search.result(driver="hypothesis")), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--runs", type=int, help="inputs for each target, instead of --seconds")
    parser.add_argument("--hypothesis", action="store_true", help="search by Hypothesis alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", help="hexadecimal digits: only this input of the one TARGET")
    parser.add_argument("--output", type=Path, help="file that the figures are written to, a line for each target")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for target in args.targets:
        if target not in TARGETS:
            parser.error(f"there is no target {target!r}; the targets are {', '.join(TARGETS)}")
    if (args.runs is not None and args.runs < 1) or not args.seconds > 0.0:
        parser.error(f"--runs is {args.runs} and --seconds {args.seconds}; both must be positive")
    targets = args.targets or list(TARGETS)
    if args.input is not None:
        (target,) = targets if len(targets) == 1 else parser.error("--input needs one TARGET")
        property_of(target).hypothesis.fuzz_one_input(bytes.fromhex(args.input))
        return 0
    if not args.hypothesis and importlib.util.find_spec("atheris") is None:
        parser.error("Atheris is not installed: pip install -e '.[fuzz]', or search with --hypothesis")
    if args.alone:
        search = Search(targets[0], runs=args.runs, seconds=args.seconds)
        (searched if args.hypothesis else guided)(search, args.seed)
        return 0
    options = ["--seconds", str(args.seconds), "--seed", str(args.seed), *["--hypothesis"] * args.hypothesis]
    if args.runs is not None:
        options += ["--runs", str(args.runs)]
    patience = None if args.runs is not None else args.seconds + PATIENCE_S
    # Of the tree as it was when the search began.
    try:
        made_with = {} if args.output is None else environment()
    except (OSError, subprocess.CalledProcessError) as error:
        parser.error(f"--output writes down the revision, and git does not tell it: {error}")
    return report([run_alone(target, options, patience) | made_with for target in targets], args.output)


def environment() -> dict[str, Any]:
    """Versions, revision and command: what anyone needs to run it again."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    versions = {"python": platform.python_version()}
    for package in ("hypothesis", "atheris", "jax", "orbax-checkpoint", "tyro"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions,
        "revision": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain")),
        "command": f"python -m tests.fuzz {shlex.join(sys.argv[1:])}",
    }


def run_alone(target: str, options: list[str], patience: float | None) -> dict[str, Any]:
    """What a process of its own finds for a target in some seconds; it is told as soon as it is known."""
    command = [sys.executable, "-m", "tests.fuzz", target, "--alone", *options]
    # In memory, because on a disk most of the time would go into making and removing folders.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) and "TMPDIR" not in os.environ else None
    try:
        # The process ends without removing its folders, which are in this one.
        with tempfile.TemporaryDirectory(prefix="bwds-fuzz-", dir=memory) as folder:
            variables = {"JAX_PLATFORMS": "cpu"} | os.environ | {"TMPDIR": folder}
            done = subprocess.run(
                command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=patience, check=True
            )
        found = json.loads(done.stdout.splitlines()[-1])
    # What it ran can end a process, or keep it for ever: that is a finding, too.
    except subprocess.CalledProcessError as error:
        found = unfinished(target, f"the process ended with code {error.returncode}: {error.stderr[-1000:]}")
    except subprocess.TimeoutExpired:
        found = unfinished(target, f"the process did not end in {patience:.0f} s")
    print(f"{target:<14} {found['inputs_tried']:>8,} inputs, {len(found['failures'])} failures", flush=True)
    for failure in found["failures"]:
        print("".join(f"    {name}: {value}\n" for name, value in failure.items()), end="")
    return found


def unfinished(target: str, why: str) -> dict[str, Any]:
    return {"target": target, "inputs_tried": 0, "driver": "?", "failures": [{"error": why, "at": "?"}]}


def report(results: list[dict[str, Any]], output: Path | None) -> int:
    """Writes the figures, and gives the exit code."""
    if output is not None:
        output.write_text("".join(json.dumps(result) + "\n" for result in results))
    failures = sum(len(result["failures"]) for result in results)
    print(f"{sum(result['inputs_tried'] for result in results):,} inputs, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
