"""Memory and compilations of a long run."""

import pytest

from tests.long_run import CHECKPOINTS, LOOKS, watch


def growth(resident: list[float]) -> float:
    """MiB from the time by which all has been used once, two checkpoints, to the highest after that."""
    warm = resident[2 * LOOKS // CHECKPOINTS :]
    return max(warm) - warm[0]


@pytest.mark.slow
def test_memory_is_flat_and_nothing_is_compiled_again(tmp_path):
    seen = watch(tmp_path, steps=20_000, progress=False)
    # The first evaluation and checkpoint are warm-up as well; the summary comes after the last step.
    steps, every, compiled = seen["steps"], seen["checkpoint_every"], seen["compiled"]
    assert not [program for program in compiled if every < program[0] < steps]
    names = [name for step, name in compiled if step < steps]
    assert names.count("jit(train_step)") == names.count("jit(eval_step)") == 1
    assert len(seen["resident_mib"]) == LOOKS
    # Orbax keeps some hundred KiB for every checkpoint; steps keep nothing.
    assert growth(seen["resident_mib"]) < 6.0
