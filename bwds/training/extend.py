"""More steps for a run that has done all of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bwds.config import Config
from bwds.data import Vocabulary
from bwds.filesystem import write_text
from bwds.output import tell
from bwds.training.identity import check_text
from bwds.training.optim import learning_rate_schedule
from bwds.training.summary import read_summary
from bwds.training.workdir import CONFIG_FILE, SUMMARY_FILE, claim_workdir, read_config


def extend(workdir: Path, config: Config, vocabulary: Vocabulary, text: str) -> None:
    """Turns the finished run in a folder into one of ``config.train.steps`` steps, which then goes on from its last.

    Its summary is kept as, for example, ``summary_300.json``. A run that already has this number of steps is left as it
    is: it was extended before, and may have been stopped.

    The learning rate of sgd depends on the step and on the plateaus so far, and goes on as if more steps had been
    planned from the start. That of adamw has come to 0 on a cosine that spans all steps. It goes on along the cosine of
    the new number of steps, so it rises again at once, and the result is not that of a run planned with this number.

    Args:
        workdir: the run's folder.
        config: the run's, with the new number of steps.
        vocabulary: of its text.
        text: the digest of its text, ``text_sha256``.

    Raises:
        ValueError: there is no run, it is another one, has more steps or is not finished; or its sparsity follows a
            schedule, whose steps are fractions of all.
    """
    there, steps = read_config(workdir), config.train.steps
    planned = there.train.steps
    if planned == steps:
        return
    # Apart from its length it must be this run.
    claim_workdir(workdir, replace(config, train=replace(config.train, steps=planned)), vocabulary)
    if planned > steps:
        raise ValueError(
            f"The run in {str(workdir)!r} has {planned} steps; to extend it, take more than that, not {steps}."
        )
    if there.rising_sparsity:
        raise ValueError(
            f"The sparsity of the run in {str(workdir)!r} follows a schedule in fractions of all its {planned} steps, "
            "so more of them would take back what was pruned; train anew in another workdir."
        )
    if (summary := read_summary(workdir)) is None:
        raise ValueError(
            f"The run in {str(workdir)!r} has not done its {planned} steps; give its own command, "
            "which asks for no more, until it is finished."
        )
    check_text(summary, text, workdir)
    optim, schedule = config.optim, learning_rate_schedule(config.optim, steps)
    rate = float(np.asarray(schedule(planned)))
    how = (
        f"the cosine of {steps:,} steps from here, so it rises again from 0 to {rate:.3g}"
        if optim.name == "adamw"
        else f"as planned, {rate:.3g} times what plateaus have left of it"
    )
    # The summary is renamed first: without it the run of the old length is unfinished, and its command writes it again.
    (workdir / SUMMARY_FILE).rename(workdir / f"summary_{planned}.json")
    write_text(workdir / CONFIG_FILE, config.to_json())
    tell(f"The run of {planned:,} steps goes on to step {steps:,}. Learning rate: {how}.")
