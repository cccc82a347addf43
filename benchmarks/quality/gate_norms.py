"""How large gradients get with each activation of the gates, beside the dense model: which of them spike.

    python -m benchmarks.quality.gate_norms [PRESET] [--data-directory DIR] [--steps 400] [--sparsity 0.5]
                                            [--output FILE]

There is a run for every optimiser and activation: SGD at the preset's rate, and AdamW at 0.002. All have the same text,
batches and steps. ``norms`` are quantiles of the gradient norm before clipping over all steps, from the least to the
largest in steps of 5%. ``over_dense`` is the quantile at 95% over that of the dense model under the same optimiser, if
that ran before.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results
from bwds import PRESETS
from bwds.config import OptimConfig
from bwds.training import NonFiniteError, train
from bwds.training.metrics import METRICS_FILE, read_metrics

GATES = ("dense", "linear", "softplus", "softmax", "relu")
OPTIMIZERS = ("sgd", "adamw")


def configuration(args, optimizer, gate):
    """The run of one optimiser and gate."""
    preset = PRESETS[args.preset]
    gated = {"method": "dynamic", "sparsity": args.sparsity, "gate_activation": gate}
    optim = OptimConfig(name="adamw", learning_rate=2e-3, clip_norm=preset.optim.clip_norm)
    text = preset.data if args.data_directory is None else dataclasses.replace(preset.data, dataset="text")
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, **({"method": "dense"} if gate == "dense" else gated)),
        data=dataclasses.replace(text, directory=args.data_directory),
        optim=optim if optimizer == "adamw" else preset.optim,
        train=dataclasses.replace(
            preset.train,
            steps=args.steps,
            eval_every=args.steps,
            checkpoint_every=args.steps,
            log_every=1,
            seed=args.seed,
        ),
    )


def measured(config):
    """Gradient norms of all steps, and the final perplexity; None if NaN or infinity stopped training."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            perplexity = train(config, Path(folder), progress=False)["validation_perplexity"]
        except NonFiniteError:
            perplexity = None
        lines = read_metrics(Path(folder) / METRICS_FILE)
    return [line["gradient_norm"] for line in lines if line["split"] == "train"], perplexity


def main():
    options = parser(__doc__)
    options.add_argument("preset", nargs="?", default="ptb-lstm-small", choices=PRESETS)
    options.add_argument("--data-directory", help="folder with the text; default: the preset's, downloaded")
    options.add_argument("--gates", nargs="+", choices=GATES, default=GATES)
    options.add_argument("--optimizer", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--sparsity", type=float, default=0.5)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    require_positive(args, "steps")
    runs = [
        (optimizer, gate, configuration(args, optimizer, gate)) for optimizer in args.optimizer for gate in args.gates
    ]
    results, dense = Results(args.output), {}
    for optimizer, gate, config in runs:
        norms, perplexity = measured(config)
        quantiles = np.quantile(norms, np.linspace(0, 1, 21))
        if gate == "dense":
            dense[optimizer] = quantiles[19]
        results.write(
            "gate_norms",
            preset=args.preset,
            optimizer=optimizer,
            learning_rate=config.optim.learning_rate,
            gate=gate,
            sparsity=0.0 if gate == "dense" else args.sparsity,
            seed=args.seed,
            steps=len(norms),
            validation_perplexity=perplexity,
            over_dense=quantiles[19] / dense[optimizer] if optimizer in dense else None,
            norms=[float(f"{q:.4g}") for q in quantiles],
        )


if __name__ == "__main__":
    script(main)
