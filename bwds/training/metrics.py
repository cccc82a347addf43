"""The records of a training run: metrics.jsonl, TensorBoard events, and a progress bar or lines."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bwds.filesystem import write_text, writing
from bwds.output import tell

METRICS_FILE = "metrics.jsonl"
LINE_EVERY_S = 10.0


def perplexity(loss: float) -> float:
    """exp(loss) for a mean cross-entropy in nats per token; capped at exp(700), near the largest float64."""
    return math.exp(min(loss, 700.0))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl, in order. A last line cut short by a killed process is left out.

    Raises:
        ValueError: any other line is not a JSON object with a step, a split and numbers.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} has a line that is not JSON, number {number}: {error}. Remove the line, or the file."
            ) from error
        if not _is_metrics_line(line):
            raise ValueError(
                f"{path} has a line, number {number}, that is no object with a step, a split and numbers. Remove the "
                "line, or the file."
            )
        found.append(line)
    return found


def _is_metrics_line(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("step")) is not int or line.get("split") not in ("train", "valid"):
        return False
    return all(value is None or isinstance(value, int | float) for name, value in line.items() if name != "split")


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard events in the same folder.

    Lines after the step that training goes on from were written by a process that ended before its next checkpoint.
    They are dropped, because these steps are done again.

    Args:
        workdir: an existing folder.
        train: the step that training goes on from.
        valid: the step of the latest evaluation before it.

    Raises:
        OSError: a file, which is named, cannot be written, here, in ``write`` or in ``close``.
    """

    def __init__(self, workdir: Path, *, train: int, valid: int) -> None:
        # Imported late, because reading metrics does not need tensorboardX.
        from bwds.training.events import Events

        path = self._path = workdir / METRICS_FILE
        known = {"train": train, "valid": valid}
        kept = [line for line in read_metrics(path) if line["step"] <= known[line["split"]]]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", newline="\n")
        self._events = Events(workdir, purge_step=train + 1 if train else None)

    def write(self, *, step: int, split: str, **values: float | None) -> None:
        """Writes one line and flushes it. A value of None is null in the line, and left out of the events."""
        line = json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n"
        with writing(self._path):
            self._file.write(line)
            self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._events.write(f"{split}/{name}", value, step)

    def write_image(self, *, step: int, name: str, png: bytes, size: tuple[int, int]) -> None:
        """Writes one picture for TensorBoard, a PNG file of ``size`` (width, height) in pixels."""
        self._events.write_image(name, png, size, step)

    def close(self) -> None:
        """Writes out the events and closes both files."""
        with contextlib.closing(self._events), writing(self._path):
            self._file.close()


class Speed:
    """Tokens per second of training alone: time between ``pause`` and the next ``go`` or ``step`` does not count."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._seconds, self._steps = 0.0, 0
        self._since: float | None = None

    def go(self) -> None:
        """Starts to count time."""
        self._since = time.perf_counter()

    def step(self) -> None:
        """One more step is done."""
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            self._steps += 1
        self._since = now

    def pause(self) -> None:
        """Stops counting time."""
        self._since = None

    def take(self) -> float | None:
        """Tokens per second since the last call; None if no step was done."""
        steps, seconds = self._steps, self._seconds
        self._seconds, self._steps = 0.0, 0
        return steps * self._tokens_per_step / seconds if steps else None


class Progress:
    """Progress on stderr: a bar on a terminal, otherwise a line every ten seconds; nothing if not ``shown``.

    Until the first step is done it says that the program is being compiled, which takes most of that time. Once stderr
    cannot be written, nothing more is shown.
    """

    def __init__(self, *, total: int, initial: int, shown: bool) -> None:
        self._total, self._shown, self._bar = total, shown, None
        self._next_line = 0.0

        def start() -> None:
            desc = "compiling" if initial < total else None
            if shown and sys.stderr is not None and sys.stderr.isatty():
                from tqdm import tqdm

                self._bar = tqdm(
                    total=total, initial=initial, unit="step", dynamic_ncols=True, file=sys.stderr, desc=desc
                )
            elif desc:
                self.note(f"step {initial}/{total}  {desc}")

        self._try(start)

    def _try(self, show: Callable[[], object]) -> None:
        try:
            show()
        except (OSError, ValueError):
            if self._bar is not None:
                self._bar.disable = True  # Otherwise it writes again when it is garbage-collected.
            self._shown, self._bar = False, None

    def update(self, *, step: int, loss: float, tokens_per_second: float | None) -> None:
        """One more step is done."""
        if self._bar is None and (not self._shown or time.monotonic() < self._next_line):
            return
        shown = {"loss": f"{loss:.3f}", "perplexity": f"{perplexity(loss):.1f}"}
        if tokens_per_second is not None:
            shown["tokens/s"] = f"{tokens_per_second:,.0f}"
        if (bar := self._bar) is not None:
            bar.set_description(refresh=False)
            bar.set_postfix(shown, refresh=False)
            self._try(bar.update)
        else:
            self._next_line = time.monotonic() + LINE_EVERY_S
            self.note(f"step {step}/{self._total}  " + "  ".join(f"{k} {v}" for k, v in shown.items()))

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if (bar := self._bar) is not None:
            self._try(lambda: bar.write(text, file=sys.stderr))
        elif self._shown:
            tell(text)

    def close(self) -> None:
        """Ends the bar, which stays as it is."""
        if self._bar is not None:
            self._try(self._bar.close)
