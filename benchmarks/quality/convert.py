"""What a dense model loses when it is made dynamic without training, and after some training steps.

    python train.py ptb-lstm-small --model.method dense ... --workdir DENSE
    python -m benchmarks.quality.convert --dense DENSE [--sparsity 0.25 0.5 0.75] [--steps 160] [--output FILE]

Writes one JSON line a case: perplexity on the whole validation split and its ratio to the dense model's, the same with
other choices of as many blocks (``bwds.training.usage``), the shares of the matrices, the cost and the seconds that the
conversion took. At --ablate-at each part of the conversion is left out in turn. With --steps, the model converted at
that sparsity is trained further, and so is the dense one beside it.
"""

import dataclasses
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import bwds
from benchmarks.command import a_folder, parser, script
from benchmarks.lines import Results
from bwds.data import load_corpus
from bwds.training import train
from bwds.training.evaluation import evaluate
from bwds.training.metrics import perplexity, read_metrics
from bwds.training.start import calibration_tokens
from bwds.training.trained import load_params
from bwds.training.usage import measure_usage
from bwds.training.workdir import read_config

PARTS = ("group", "budgets")


def main() -> None:
    args = arguments()
    config = read_config(args.dense)
    corpus = load_corpus(config.data)
    params, step = load_params(config, args.dense, "best")
    tokens = calibration_tokens(corpus.train)

    eos = corpus.vocabulary.eos_id
    loss = evaluate(bwds.language_model(config.model), params, corpus.valid, config.data, eos).loss
    dense = {"validation_perplexity": perplexity(loss), "density": 1.0}

    def measured(params: Any, model: bwds.ModelConfig) -> dict[str, Any]:
        found = measure_usage(params, model, corpus.valid, config.data, eos, counterfactuals=True)
        choices = {choice: float(f"{perplexity(loss):.6g}") for choice, loss in found.losses.items()}
        density = sum(m.num_kept for m in found.matrices.values()) / sum(m.used.size for m in found.matrices.values())
        return {"validation_perplexity": perplexity(found.losses["own"]), "density": density, "choices": choices}

    results = Results(args.output)

    def write(kind: str, **values: Any) -> None:
        ratio = values["validation_perplexity"] / dense["validation_perplexity"]
        results.write("convert", kind=kind, ratio=ratio, dense_steps=step, calibration_tokens=tokens.size, **values)

    write("dense", **dense)
    whole = dict.fromkeys(PARTS, True)
    cases = [(sparsity, whole) for sparsity in args.sparsity]
    cases += [(args.ablate_at, whole | {part: False}) for part in PARTS]
    cases += [(args.ablate_at, dict.fromkeys(PARTS, False))]
    for sparsity, parts in cases:
        start = time.perf_counter()
        converted, model = bwds.convert(params, config.model, sparsity=sparsity, tokens=tokens, **parts)
        seconds = time.perf_counter() - start
        write(
            "converted",
            sparsity=sparsity,
            **parts,
            **measured(converted, model),
            sparsities=model.sparsities,
            relative_cost=bwds.cost(model).relative,
            relative_recurrent_cost=bwds.cost(model).relative_recurrent,
            seconds=seconds,
        )
    if not args.steps:
        return
    for method in ("dynamic", "dense"):
        model = dataclasses.replace(
            config.model, method=method, gate_source="norm", gate_rank=None, sparsity=args.ablate_at
        )
        steps = dataclasses.replace(config.train, steps=args.steps, eval_every=args.steps)
        optim = dataclasses.replace(config.optim, learning_rate=args.learning_rate)
        with tempfile.TemporaryDirectory() as folder:
            run = dataclasses.replace(config, model=model, train=steps, optim=optim)
            train(run, Path(folder), start_from=args.dense, progress=False)
            ends = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if line["split"] == "valid"]
        for line in ends:
            found = {"validation_perplexity": line["perplexity"], "density": line["density"]}
            write(f"{method} after training", steps=line["step"], learning_rate=args.learning_rate, **found)


def arguments() -> Namespace:
    options = parser(__doc__)
    options.add_argument("--dense", type=a_folder, required=True, help="folder of a run of method dense")
    options.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.25, 0.75])
    options.add_argument("--ablate-at", type=float, default=0.5)
    options.add_argument("--steps", type=int, default=0, help="steps of training after the conversion at --ablate-at")
    options.add_argument("--learning-rate", type=float, default=10.0)
    return options.parse_args()


if __name__ == "__main__":
    script(main)
