"""Lines of metrics.jsonl, what survives a killed process, speed and progress."""

import errno
import io
import json
import math
import resource
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from bwds.output import say, tell
from bwds.training import metrics
from bwds.training.metrics import MetricsWriter, Progress, Speed, perplexity, read_metrics


def test_perplexity_is_finite_for_any_loss():
    assert perplexity(2.0) == math.exp(2.0)
    assert math.isfinite(perplexity(1e9))


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    first, second = ({"step": step, "split": "train"} for step in (1, 2))
    path.write_text(f'{json.dumps(first)}\n{json.dumps(second)}\n{{"st')
    assert read_metrics(path) == [first, second]
    path.write_text(f'{json.dumps(first)}\n{{"st\n{json.dumps(second)}\n')
    with pytest.raises(ValueError, match="a line that is not JSON"):
        read_metrics(path)


def test_lines_past_the_restored_step_are_dropped_and_rewritten(tmp_path):
    writer = MetricsWriter(tmp_path, train=0, valid=0)
    for step in range(1, 7):
        writer.write(step=step, split="train", loss=float(step), tokens_per_second=None)
        if step % 2 == 0:
            writer.write(step=step, split="valid", loss=float(step))
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "spl')
    # The state restored is that of step 4, before its evaluation.
    writer = MetricsWriter(tmp_path, train=4, valid=2)
    writer.write(step=4, split="valid", loss=4.5)
    writer.close()
    lines = [(line["step"], line["split"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert lines == [
        (1, "train", 1.0),
        (2, "train", 2.0),
        (2, "valid", 2.0),
        (3, "train", 3.0),
        (4, "train", 4.0),
        (4, "valid", 4.5),
    ]


def test_a_line_is_on_disk_when_write_returns(tmp_path):
    writer = MetricsWriter(tmp_path, train=0, valid=0)
    writer.write(step=1, split="train", loss=0.5, tokens_per_second=None)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "split": "train", "loss": 0.5, "tokens_per_second": None}
    writer.close()


def test_numbers_that_are_no_json_are_refused(tmp_path):
    writer = MetricsWriter(tmp_path, train=0, valid=0)
    with pytest.raises(ValueError, match="JSON"):
        writer.write(step=1, split="train", loss=math.nan)
    writer.close()


def test_tensorboard_events_hold_the_values(tmp_path):
    """Events past the state that training goes on from are declared void."""
    for train in (0, 4):
        writer = MetricsWriter(tmp_path, train=train, valid=0)
        writer.write(step=train + 1, split="train", loss=0.5, tokens_per_second=None)
        writer.close()
        (events,) = tmp_path.glob("events.out.tfevents.*")
        content, found = io.BytesIO(events.read_bytes()), []
        while header := content.read(12):
            found.append(Event.FromString(content.read(int.from_bytes(header[:8], "little"))))
            content.read(4)
        first, *purge, last = found
        assert first.file_version == "brain.Event:2"
        assert [(e.step, e.session_log.status) for e in purge] == ([(5, SessionLog.START)] if train else [])
        assert [(last.step, v.tag, v.simple_value) for v in last.summary.value] == [(train + 1, "train/loss", 0.5)]
        events.unlink()


@pytest.mark.parametrize(("values", "full"), [(40, "events"), (1, "metrics.jsonl")])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, values, full):
    """It comes at the line or soon after it, from the file that meets the limit first; closing says the same."""
    writer = MetricsWriter(tmp_path, train=0, valid=0)
    line = {f"value{i}": 0.5 for i in range(values)} | ({"pad" * 1000: None} if values == 1 else {})
    # As a quota would: from now on no file may grow beyond this.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        steps = iter(range(1, 500))
        with pytest.raises(OSError, match=rf"{tmp_path}/{full}\S* cannot be written: File too large\."):
            all(writer.write(step=step, split="train", **line) is None for step in steps)
        assert next(steps) < 100
        with pytest.raises(OSError, match=rf"{tmp_path}/{full}\S* cannot be written: File too large\."):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_speed_counts_training_time_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    speed = Speed(tokens_per_step=100)

    def step(seconds):
        now[0] += seconds
        speed.step()

    step(60.0)  # the first step compiles
    assert speed.take() is None
    step(2.0)
    step(2.0)
    speed.pause()
    now[0] += 30.0  # an evaluation
    speed.go()
    step(1.0)
    assert speed.take() == pytest.approx(3 * 100 / 5.0)
    assert speed.take() is None


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    progress = Progress(total=9, initial=0, shown=True)
    for step in range(1, 10):
        progress.update(step=step, loss=math.log(50.0), tokens_per_second=1234.0)
        now[0] += 3.0
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["0/9", "1/9", "5/9", "9/9"]
    assert lines[0] == "step 0/9  compiling"
    assert lines[1] == "step 1/9  loss 3.912  perplexity 50.0  tokens/s 1,234"


def test_progress_that_is_not_shown_is_silent(capsys):
    progress = Progress(total=9, initial=0, shown=False)
    progress.update(step=1, loss=1.0, tokens_per_second=None)
    progress.note("a note")
    assert capsys.readouterr().err == ""


class Gone(io.StringIO):
    """A stream whose reader has ended, after some calls."""

    encoding = "utf-8"

    def __init__(self, left, error, terminal):
        super().__init__()
        self.left, self.error, self.terminal = left, error, terminal

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("left", [0, 1, 5])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "gone"), ValueError("closed"), None]
)
def test_progress_that_cannot_be_shown_ends_nothing(monkeypatch, left, terminal, error):
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(sys, "stderr", error and Gone(left, error, terminal))
    progress = Progress(total=9, initial=0, shown=True)
    for step in range(1, 10):
        progress.update(step=step, loss=1.0, tokens_per_second=None)
        progress.note("a note")
    progress.close()
    assert tell("a warning") is False


def test_characters_that_a_terminal_has_not_are_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert say("\u00fcber <unk>")
    assert stream.buffer.getvalue() == b"\\xfcber <unk>\n"


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress(total=4, initial=1, shown=True)
    assert "compiling:  25%" in sys.stderr.getvalue()
    sys.stderr.truncate(0)
    progress.update(step=2, loss=math.log(50.0), tokens_per_second=1234.0)
    progress.note("a note")
    progress.close()
    shown = sys.stderr.getvalue()
    assert "a note\n" in shown
    assert "2/4" in shown
    assert "compiling" not in shown
    assert "perplexity=50.0" in shown
