"""What this machine has to tell about bwds, in as many minutes as you give it.

    python benchmarks/hardware.py --minutes 10 --output DIR [--data-directory DIR] [--only PART ...] [--after PART]
    python benchmarks/hardware.py --list
    python benchmarks/hardware.py --only pays

Are the kernels right on this device, how fast are they, and what does training with them come to? The parts run in
order of value until the time is up, each in a process of its own that may not take longer than its limit; one that
fails is reported, and the next one runs. DIR/lines.jsonl gets a line for every case as soon as it is measured,
DIR/log.txt what the parts say, and DIR/summary.md a page with the ratios, what ran and what is left; it is written anew
after each part. The same command goes on with the parts that have not ended yet. DIR/cache keeps compiled programs.

A GPU and a TPU run their kernels at the sizes of the paper and above, a CPU the same parts at small sizes. --only pays
answers one question on a CPU, in a minute: from which width on does skipping blocks pay here?

The text is Penn Treebank; --data-directory names a folder with its three files, and nothing is downloaded then.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bwds.cli import run
from bwds.output import say
from bwds.timing import verdict

ROOT = Path(__file__).resolve().parents[1]
SPARE = 3.0
"""Seconds that a part gets to end by itself, and that the last page takes."""
LEAST = 10.0
"""Seconds under which no part is begun."""

_PROGRAM = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
ENDS_WITH_PARENT = [sys.executable, "-c", _PROGRAM] if sys.platform == "linux" else []
"""Runs a command that Linux ends when this process is killed, so that no part runs on beside the next ones."""

Line = dict[str, Any]


class Part(NamedTuple):
    """A command of benchmarks/; ``seconds`` are expected, and three times as many, at least 90, are its limit.

    Without ``seconds`` it takes what is left, and is told how much that is.
    """

    name: str
    tells: str
    seconds: int | None
    command: str


LARGE = (
    Part("right", "every kernel against float64 on the device", 90, "correctness.py"),
    Part(
        "products",
        "products of decoding against dense, H 4096",
        40,
        "kernels.py decode --hidden 4096 --dtype bfloat16 float32 --gate-rank 128",
    ),
    Part(
        "models",
        "whole LSTMs of 2 x 4096, and cuDNN's",
        60,
        "decode.py --cell lstm --hidden 4096 --batch 1 --sparsity 0.5 0.75 --dtype bfloat16 float32 --gate-rank 128 "
        "--steps 64",
    ),
    Part("steps", "training steps of ptb-lstm", 50, "train_step.py ptb-lstm --sparsity 0.5 --dtype float32 bfloat16"),
    Part(
        "batched",
        "products of training and their gradients, H 1536",
        40,
        "kernels.py batched --rows 128 2240 --dtype float32 bfloat16 --sparsity 0.5",
    ),
    Part("profile", "which kernels a word and a training step take", 40, "device_profile.py"),
    Part(
        "other-products",
        "products of decoding, H 1536 and 8192",
        60,
        "kernels.py decode --hidden 1536 8192 --dtype bfloat16 float32 --gate-rank 128",
    ),
    Part("rival", "jax.lax.ragged_dot on the kept blocks", 30, "ragged.py --hidden 1536 4096"),
    Part("table", "the paper's comparison: ptb-lstm dense, dynamic and pruned", None, "paper_table.py"),
)
SMALL = (
    Part("right", "every product against float64", 60, "correctness.py --small"),
    Part(
        "products",
        "products of decoding against dense, H 512",
        10,
        "kernels.py decode --hidden 512 --few-rows 1 4 --sparsity 0.5 0.9 --rotate-mib 32",
    ),
    Part(
        "models",
        "whole LSTMs of 2 x 512",
        15,
        "decode.py --cell lstm --hidden 512 --batch 1 --sparsity 0.5 0.9 --vocab 2000 --turns 5",
    ),
    Part("steps", "training steps of quick", 40, "train_step.py quick --sparsity 0.5 --turns 3"),
    Part(
        "batched",
        "products of training and their gradients, H 256",
        10,
        "kernels.py batched --hidden 256 --block 32 --rows 64 --sparsity 0.5",
    ),
    Part(
        "profile",
        "which operations a word takes",
        15,
        "device_profile.py --hidden 256 --block 32 --vocab 1000 --sparsity 0.5 --dtype float32 --gate-rank 16 --preset",
    ),
    Part("rival", "jax.lax.ragged_dot on the kept blocks", 15, "ragged.py --hidden 256 --block 32"),
    Part(
        "pays",
        "words a second by width: from where on skipping pays",
        60,
        "decode.py --cell lstm --hidden 512 1024 2048 4096 --batch 1 --gate-rank 64 --steps 2 --turns 3",
    ),
    Part(
        "table",
        "the paper's comparison, rehearsed: some steps of ptb-lstm-small",
        None,
        "paper_table.py --preset ptb-lstm-small --epoch-steps 20",
    ),
)


class Output:
    """The folder of the results."""

    def __init__(self, folder: Path) -> None:
        self.lines, self.log, self.summary = (folder / name for name in ("lines.jsonl", "log.txt", "summary.md"))
        self.cache, self.runs = folder / "cache", folder
        folder.mkdir(parents=True, exist_ok=True)
        if self.lines.exists():
            # What a killed process left of its last line.
            whole = self.lines.read_bytes()
            self.lines.write_bytes(whole[: whole.rfind(b"\n") + 1])

    def read(self) -> list[Line]:
        """All lines."""
        return [json.loads(line) for line in self.lines.read_text().splitlines()] if self.lines.exists() else []

    def ended(self) -> dict[str, Line]:
        """The last line of every part that was run, by its name."""
        return {line["part"]: line for line in self.read() if line["benchmark"] == "part"}

    def write(self, **values: Any) -> None:
        """A line of this script's own."""
        with self.lines.open("a") as file:
            file.write(json.dumps(values) + "\n")


def platform() -> str:
    """cpu, gpu or tpu, as another process sees it: this one leaves the device to the parts."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"JAX does not start here: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.split()[-1]


def run_part(part: Part, output: Output, left: float, directory: str | None) -> Line:
    """Runs a part and returns its line.

    Args:
        part: which.
        output: where its lines and what it says go.
        left: seconds that there are for it.
        directory: of the text files.
    """
    limit = left if part.seconds is None else min(left, max(90.0, 3.0 * part.seconds))
    script, *arguments = part.command.split()
    command = [*ENDS_WITH_PARENT, sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    if part.seconds is None:
        command += [f"--minutes={(limit - SPARE) / 60:.3f}", f"--output={output.runs}"]
        command += [] if directory is None else [f"--data-directory={directory}"]
    else:
        command += [f"--output={output.lines}"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(output.cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = time.monotonic()
    with output.log.open("a") as log:
        print(f"\n=== {part.name}: {shlex.join(command[len(ENDS_WITH_PARENT) :])}", file=log, flush=True)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    seconds = round(time.monotonic() - start, 1)
    return {"benchmark": "part", "part": part.name, "exit_code": code, "seconds": seconds, "limit": round(limit, 1)}


def end(process: subprocess.Popen) -> None:
    """Ends a part, with all processes it has started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(SPARE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


# The page -------------------------------------------------------------------------------------------------------------


def _of(kind: str, text: Callable[[Line], str]) -> Callable[[list[Line]], list[str]]:
    return lambda lines: [text(line) for line in lines if line["benchmark"] == kind]


def _right(lines: list[Line]) -> list[str]:
    cases = [line for line in lines if line["benchmark"] == "correct"]
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
        f"{line['sparsity']}: {line['dynamic_tokens_per_second']:,.0f} words a second, {', '.join(others)}"
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
    """From which width on one stream is faster with blocks skipped than dense; None where no width was measured."""
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
    """In words."""
    if line is None:
        return "not run"
    if line["exit_code"] is None:
        return f"cut off after {line['seconds']:.0f} s"
    return f"done in {line['seconds']:.0f} s" if line["exit_code"] == 0 else f"failed with status {line['exit_code']}"


# The command ----------------------------------------------------------------------------------------------------------


def chosen(parts: tuple[Part, ...], only: list[str] | None, after: str | None) -> list[Part]:
    """Those that the arguments name. Raises ``ValueError`` for a name that none has."""
    names = [part.name for part in parts]
    for name in [*(only or []), *filter(None, [after])]:
        if name not in names:
            raise ValueError(f"There is no part {name!r} here; the parts are {', '.join(names)}.")
    if after is not None:
        parts = parts[names.index(after) + 1 :]
    return [part for part in parts if only is None or part.name in only]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all of it; default: 10")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("hardware"), help="default: hardware")
    parser.add_argument("--data-directory", help="folder of Penn Treebank's text files; otherwise they are downloaded")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts")
    parser.add_argument("--after", metavar="PART", help="leave out the parts up to this one")
    parser.add_argument("--list", action="store_true", help="show the parts; run nothing")
    args = parser.parse_args(arguments)
    start = time.monotonic()
    if not 0 < args.minutes < float("inf"):
        raise ValueError(f"--minutes is {args.minutes:g}; it must be above 0 and finite.")
    parts = chosen(SMALL if platform() == "cpu" else LARGE, args.only, args.after)
    if args.list:
        for part in parts:
            expected = "the rest" if part.seconds is None else f"{part.seconds} s"
            print(f"{part.name:<16}{expected:>10}  {part.tells}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    output = Output(args.output.resolve())
    try:
        for part in parts:
            ended, left = output.ended().get(part.name), 60 * args.minutes - (time.monotonic() - start) - 2 * SPARE
            if ended is not None and ended["exit_code"] == 0:
                say(f"{part.name}: {how_it_ended(ended)} before")
                continue
            if left < LEAST:
                break
            say(f"{part.name}: {part.tells} ...")
            line = run_part(part, output, left, args.data_directory and str(Path(args.data_directory).resolve()))
            output.write(**line)
            output.summary.write_text(page(output.read(), parts))
            say(f"{part.name}: {how_it_ended(line)}")
    finally:
        output.summary.write_text(page(output.read(), parts))
    say(f"\n{output.summary.read_text()}\n{output.lines} has the raw lines, {output.log} what the parts said.")


if __name__ == "__main__":
    sys.exit(run(main, "benchmarks/hardware.py", sys.argv[1:]))
