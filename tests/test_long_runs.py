"""What would only show after hours: memory that grows, and programs that are compiled again."""

import dataclasses
from pathlib import Path

import jax
import pytest
import tiny_run

from bwds import training
from bwds.training import train

STEPS, EVERY, LOOK_EVERY = 20_000, 2_500, 500


@pytest.mark.slow
def test_memory_is_flat_and_nothing_is_compiled_again(tmp_path, monkeypatch):
    config = tiny_run.config(
        tiny_run.write_corpus(tmp_path / "text"), steps=STEPS, eval_every=EVERY, checkpoint_every=EVERY
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=LOOK_EVERY))
    resident, compiled, now = [], [], [0]

    def count(event: str, _: float, *, fun_name: str = "", **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append((now[0], fun_name))

    class Watched(training.MetricsWriter):
        def write(self, *, step: int, split: str, **values: float | None) -> None:
            super().write(step=step, split=split, **values)
            now[0] = step
            if split == "train":
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident.append(pages * 4096 / 2**20)

    monkeypatch.setattr(training, "MetricsWriter", Watched)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        train(config, tmp_path / "run", progress=False)
    finally:
        jax.monitoring.clear_event_listeners()
    print("MiB along the way:", *(f"{r:.1f}" for r in resident))
    print("Programs compiled after step:", *compiled)
    # The first evaluation and checkpoint are warm-up as well; the summary comes after the last step.
    assert not [program for program in compiled if EVERY < program[0] < STEPS]
    names = [name for step, name in compiled if step < STEPS]
    assert names.count("jit(train_step)") == names.count("jit(eval_step)") == 1
    assert len(resident) == STEPS // LOOK_EVERY
    # Orbax keeps some hundred KiB for every checkpoint; steps keep nothing.
    assert max(resident[12:]) - resident[11] < 6.0
