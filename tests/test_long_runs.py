"""What would only show after hours: memory that grows, and programs that are compiled again."""

import dataclasses
from pathlib import Path

import jax
import pytest
import tiny_run

from bwds import training
from bwds.training import train

STEPS, EVERY = 20_000, 1_000


@pytest.mark.slow
def test_memory_is_flat_and_nothing_is_compiled_again(tmp_path, monkeypatch):
    config = tiny_run.config(
        tiny_run.write_corpus(tmp_path / "text"), steps=STEPS, eval_every=EVERY, checkpoint_every=EVERY
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=100))
    resident, compiled, now = [], [], [0]

    def count(event: str, _: float, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(now[0])

    class Watched(training.MetricsWriter):
        def write(self, *, step: int, split: str, **values: float | None) -> None:
            super().write(step=step, split=split, **values)
            now[0] = step
            if split == "valid":
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident.append(pages * 4096 / 2**20)

    monkeypatch.setattr(training, "MetricsWriter", Watched)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        train(config, tmp_path / "run", progress=False)
    finally:
        jax.monitoring.clear_event_listeners()
    print("MiB at every evaluation:", *(f"{r:.1f}" for r in resident))
    print("Programs compiled after step:", *compiled)
    # The second evaluation, the second checkpoint and the summary are warm-up as well.
    assert not [step for step in compiled if 2 * EVERY <= step < STEPS]
    assert len(resident) == STEPS // EVERY
    assert max(resident[5:]) - resident[4] < 8.0
