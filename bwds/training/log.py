"""The output of a run while it trains: metrics, progress, its speed, and a trace of some steps."""

from functools import partial
from pathlib import Path

from bwds import plots
from bwds.config import Config
from bwds.training.evaluation import Evaluation
from bwds.training.metrics import MetricsWriter, Progress, Speed, perplexity
from bwds.training.optim import sparsity_at, step_sparsity
from bwds.training.processes import first_alone, is_first
from bwds.training.profiling import StepTrace


class Log:
    """Metrics, progress and trace of the first process. All processes make a log, and call the same methods.

    Args:
        config: the run's.
        workdir: the run's folder.
        step: the step that training goes on from.
        evaluated: the step of the latest evaluation before it.
        profile: how many steps are traced.
        shown: show progress on stderr.

    Raises:
        OSError: a file cannot be written, here or in any method.
    """

    def __init__(self, config: Config, workdir: Path, *, step: int, evaluated: int, profile: int, shown: bool) -> None:
        self._config = config
        self._metrics: MetricsWriter | None = first_alone(partial(MetricsWriter, workdir, train=step, valid=evaluated))
        self.trace = StepTrace(workdir, start=step, steps=profile if is_first() else 0)
        self._progress = Progress(total=config.train.steps, initial=step, shown=shown and is_first())
        self.speed = Speed(config.data.batch_size * config.data.sequence_length)
        self._tokens_per_second: float | None = None
        self._draws_nothing = False

    def step(self, step: int, values: dict[str, float]) -> None:
        """Records a step that is done; ``values`` are its ``StepMetrics``."""
        if step % self._config.train.log_every == 0 or step == self._config.train.steps:
            self._tokens_per_second = self.speed.take()
            self._write(
                step=step,
                split="train",
                perplexity=perplexity(values["loss"]),
                **values,
                sparsity=step_sparsity(self._config, step - 1),
                tokens_per_second=self._tokens_per_second,
            )
        self._progress.update(step=step, loss=values["loss"], tokens_per_second=self._tokens_per_second)

    def evaluation(self, step: int, found: Evaluation) -> None:
        """Records an evaluation on the validation split."""
        self._write(
            step=step,
            split="valid",
            loss=found.loss,
            perplexity=perplexity(found.loss),
            density=found.density,
            sparsity=sparsity_at(self._config, step),
        )
        if self._metrics is not None and found.usage:
            self._draw_usage(self._metrics, step, found)

    def _draw_usage(self, metrics: MetricsWriter, step: int, found: Evaluation) -> None:
        """Draws how often each block was used; if matplotlib is missing or cannot draw, it only says so, once."""
        if self._draws_nothing:
            return
        if not plots.is_available():
            self._draws_nothing = True
            self.note('TensorBoard gets no maps of used blocks: matplotlib is missing (pip install -e ".[plots]").')
            return
        model = self._config.model
        try:
            png, size = plots.png_of(plots.usage_maps(found.usage, model.block_shape, cell=model.cell))
        except Exception as error:
            # A picture is not worth a run, whatever is wrong with matplotlib here, such as its settings.
            self._draws_nothing = True
            self.note(f"TensorBoard gets no maps of used blocks: matplotlib ends with {type(error).__name__}: {error}")
            return
        metrics.write_image(step=step, name="valid/used_blocks", png=png, size=size)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._progress.note(text)

    def _write(self, *, step: int, split: str, **values: float | None) -> None:
        if self._metrics is not None:
            self._metrics.write(step=step, split=split, **values)

    def close(self) -> None:
        """Closes the files."""
        self.trace.close()
        if self._metrics is not None:
            self._metrics.close()
        self._progress.close()
