"""Which blocks are kept, and perplexity with other choices of them, against the oracle and by what must be equal."""

import dataclasses
import json
import math
from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bwds.config import DataConfig, ModelConfig
from bwds.counterfactual import apply_choosing, chance_overlap, gated_matrices, kept_of_each
from bwds.counts import num_kept_blocks
from bwds.hashing import hashed_scores
from bwds.model import language_model, map_kernels
from bwds.plots import title_of
from bwds.training.evaluation import evaluate
from bwds.training.usage import CHOICES, measure_usage
from pallas_kernels import to_block_major

V, H, EOS = 23, 16, 3
DATA = DataConfig(dataset="text", directory=".", eval_batch_size=3, sequence_length=5)
IDS = np.random.default_rng(0).integers(0, V, 61).astype(np.int32)
CASES = {
    "lstm": {"gate_activation": "softplus", "num_layers": 2},
    "lstm, linear": {"gate_normalization": "bounded", "sparsity": 0.75},
    "lstm, norms": {"gate_source": "norm"},
    "lstm, by column": {"gate_activation": "softplus", "gate_scope": "column"},
    "lstm, hashed": {"gate_source": "random"},
    "lstm, shares": {
        "gate_source": "norm",
        "sparsities": (("layer_0/input", 0.25), ("layer_0/hidden", 0.75)),
    },
    "qrnn": {"cell": "qrnn", "gate_activation": "softplus", "num_layers": 2, "gate_rank": 2},
}


def configuration(case, **changes):
    return ModelConfig(
        **{"vocab_size": V, "hidden_size": H, "num_layers": 1, "block_size": 4, **CASES[case], **changes}
    )


def parameters(config):
    """Larger than at initialisation, so that choices matter."""
    return jax.tree.map(lambda a: 4.0 * a, language_model(config).init(jax.random.key(1)))


def measured(config, params=None, **options):
    params = parameters(config) if params is None else params
    return measure_usage(params, config, IDS, DATA, EOS, counterfactuals=True, **options)


class Oracle:
    """A text read token by token in float64: one stream, the model's equations, blocks by any of the choices."""

    def __init__(self, config, params):
        self.config, self.params = config, oracle.f64(jax.device_get(params))
        self.grids = gated_matrices(config)

    def rule(self, name):
        c = self.config
        rows, columns = self.grids[name]
        sparsity = dict(c.sparsities).get(name) if c.sparsities else c.sparsity
        k = num_kept_blocks(rows if c.gate_scope == "column" else rows * columns, sparsity)
        return oracle.Rule(rows, columns, k, c.gate_activation, c.gate_scope, c.gate_normalization, c.gate_source)

    def product(self, name, x, choice):
        """(y, mask) of one input; ``choice`` is own, hindsight or, by name, a mask."""
        layer, part = name.split("/")
        params, rule = self.params[layer][part], self.rule(name)
        w, r, c = params["kernel"], rule.rows, rule.columns
        blocks = w.reshape(r, w.shape[0] // r, c, w.shape[1] // c)
        if rule.source == "norm":
            scores = oracle.norm_scores(w, x[None], r, c)[0]
        elif rule.source == "random":
            scores = np.asarray(hashed_scores(jnp.float32(x), r * c), np.float64).reshape(r, c)
        else:
            scores = oracle.gate_scores(params["gate"], x[None])[0].reshape(r, c)
        if rule.source in ("norm", "random"):
            values = np.ones((r, c))
        else:
            values = np.logaddexp(0.0, scores) if rule.activation == "softplus" else scores
        if choice == "own":
            mask = oracle.kept_mask(scores, rule.num_kept, rule.scope)
        elif choice == "hindsight":
            parts = np.einsum("rk,rkcn->rcn", x.reshape(r, -1), blocks) * values[:, :, None]
            mask = oracle.kept_mask(np.sqrt((parts**2).sum(-1)), rule.num_kept, rule.scope)
        else:
            mask = choice[name]
        if rule.source == "norm":
            gates = mask.astype(float)
        else:
            gates = oracle._gates_of(
                np.ones((r, c)) if rule.source == "random" else scores, mask, rule.activation, rule.normalization
            )
        return np.einsum("rk,rkcn,rc->cn", x.reshape(r, -1), blocks, gates).reshape(-1), mask

    def read(self, choices):
        """Loss in nats of each token of IDS and the masks of each, by matrix; ``choices[t]`` as in ``product``."""
        p, config = self.params, self.config
        h = np.zeros((config.num_layers, H))
        c = np.zeros((config.num_layers, H))
        losses, kept = [], []
        for t, (token, target) in enumerate(zip([EOS, *IDS[:-1]], IDS, strict=True)):
            x, masks = p["embedding"][token], {}
            for i in range(config.num_layers):
                name, layer = f"layer_{i}", p[f"layer_{i}"]
                if config.cell == "lstm":
                    a, masks[f"{name}/input"] = self.product(f"{name}/input", x, choices[t])
                    b, masks[f"{name}/hidden"] = self.product(f"{name}/hidden", h[i], choices[t])
                    gate_i, gate_f, g, o = np.split(a + b + layer["bias"], 4)
                    c[i] = oracle.sigmoid(gate_f) * c[i] + oracle.sigmoid(gate_i) * np.tanh(g)
                    x = h[i] = oracle.sigmoid(o) * np.tanh(c[i])
                else:
                    y, masks[f"{name}/input"] = self.product(f"{name}/input", np.concatenate([h[i], x]), choices[t])
                    z, f, o = np.split(y + layer["bias"], 3)
                    h[i] = x
                    c[i] = oracle.sigmoid(f) * c[i] + (1 - oracle.sigmoid(f)) * np.tanh(z)
                    x = oracle.sigmoid(o) * c[i]
            logits = x @ p["softmax"]["kernel"] + p["softmax"]["bias"]
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])
            kept.append(masks)
        return np.array(losses), kept


def jaccard(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case in ("lstm, linear", "lstm, hashed"))) for case in CASES],
)
def test_losses_and_usage_are_those_of_the_oracle(case):
    config = configuration(case)
    params = parameters(config)
    reader = Oracle(config, params)
    # One stream, because the oracle reads one; how several streams begin is not compared.
    single = DataConfig(dataset="text", directory=".", eval_batch_size=1, sequence_length=7)
    groups = np.array([i % 3 - 1 for i in range(V)], np.int32)
    found = measure_usage(params, config, IDS, single, EOS, counterfactuals=True, groups=groups)

    losses, kept = reader.read(["own"] * len(IDS))
    assert found.losses["own"] == pytest.approx(losses.mean(), rel=2e-5)
    step_before = [kept[0], *kept[:-1]]
    assert found.losses["step before"] == pytest.approx(reader.read(step_before)[0].mean(), rel=2e-5)
    assert found.losses["hindsight"] == pytest.approx(reader.read(["hindsight"] * len(IDS))[0].mean(), rel=2e-5)
    static = {}
    for name, usage in found.matrices.items():
        masks = np.stack([step[name] for step in kept])
        np.testing.assert_allclose(usage.used, masks.mean(0), atol=1e-6)
        rule = reader.rule(name)
        static[name] = oracle.kept_mask(masks.mean(0), rule.num_kept, rule.scope)
        assert {usage.num_kept} == set(masks.sum((1, 2))) == {kept_of_each(config, name, reader.grids[name])}
        pairs = [jaccard(a, b) for a, b in zip(masks[1:], masks[:-1], strict=True)]
        assert usage.overlap_before == pytest.approx(np.mean(pairs), rel=1e-5)
        assert usage.nearly_always == (masks.mean(0) > 0.95).mean()
        assert usage.nearly_never == (masks.mean(0) < 0.05).mean()
        of = groups[np.array([EOS, *IDS[:-1]])]
        for group in range(2):
            np.testing.assert_allclose(usage.by_group[group], masks[of == group].mean(0), atol=1e-6)
    assert found.losses["most frequent"] == pytest.approx(reader.read([static] * len(IDS))[0].mean(), rel=2e-5)
    assert tuple(found.losses) == CHOICES


@pytest.mark.parametrize("case", ["lstm, linear", "qrnn"])
def test_own_choice_is_evaluation_itself(case):
    config = configuration(case)
    params = parameters(config)
    found = measured(config, params)
    assert found.losses["own"] == evaluate(language_model(config), params, IDS, DATA, EOS).loss
    assert found.tokens == len(IDS)


@pytest.mark.parametrize("case", ["lstm", "qrnn"])
def test_with_all_blocks_every_choice_is_the_same(case):
    found = measured(configuration(case, sparsity=0.0))
    assert len(set(found.losses.values())) == 1
    assert all(
        usage.overlap_before == usage.overlap_other == usage.overlap_chance == 1.0 for usage in found.matrices.values()
    )


def test_a_gate_that_ignores_the_input_loses_nothing_by_another_input_s_choice():
    found = measured(configuration("lstm", gate_source="bias"))
    losses = found.losses
    assert losses["own"] == losses["other token"] == losses["step before"] == losses["most frequent"]
    assert losses["hindsight"] != losses["own"]
    assert all(usage.overlap_other == 1.0 and usage.nearly_always == 0.5 for usage in found.matrices.values())


def test_the_stand_in_is_another_token_of_the_window():
    """A window of two tokens has one other token, so the two exchange their choices."""
    config = configuration("lstm")
    params = parameters(config)
    pair = DataConfig(dataset="text", directory=".", eval_batch_size=1, sequence_length=2)
    found = measure_usage(params, config, IDS[:60], pair, EOS, counterfactuals=True, seed=5)
    reader = Oracle(config, params)
    _, kept = reader.read(["own"] * len(IDS))
    exchanged = [kept[t ^ 1] for t in range(60)]
    assert found.losses["other token"] == pytest.approx(reader.read([*exchanged, "own"])[0][:60].mean(), rel=2e-5)


@pytest.mark.parametrize(
    ("grid", "num_kept", "scope"), [((2, 3), 2, "matrix"), ((3, 2), 2, "column"), ((2, 2), 4, "matrix")]
)
def test_chance_overlap_is_the_mean_over_all_pairs_of_sets(grid, num_kept, scope):
    rows, columns = grid
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    total = num_kept * columns if scope == "column" else num_kept
    sets = [set(s) for s in combinations(cells, total)]
    if scope == "column":
        sets = [s for s in sets if all(sum(c == j for _, c in s) == num_kept for j in range(columns))]
    pairs = [len(a & b) / len(a | b) for a in sets for b in sets]
    assert chance_overlap(grid, num_kept, scope) == pytest.approx(math.fsum(pairs) / len(pairs))


def test_the_overlap_by_chance_is_that_of_the_matrix_s_own_number_of_blocks():
    config = configuration("lstm, shares")
    found = measure_usage(parameters(config), config, IDS, DATA, EOS).matrices
    assert len({usage.num_kept for usage in found.values()}) == 2
    for name, grid in gated_matrices(config).items():
        assert found[name].overlap_chance == chance_overlap(grid, found[name].num_kept)


CONSIDERED = set(
    """
vocab_size hidden_size num_layers cell method sparsity magnitude_unit block_size gate_rank gate_activation
gate_normalization gate_scope gate_source dropout dropout_input dropout_hidden embedding_dropout weight_dropout
locked_dropout init_bound tied_softmax dtype implementation sparsities
""".split()
)


def test_every_option_of_a_model_is_considered():
    """``apply_choosing`` repeats the model's layers, so it must do what a new option does in them."""
    new = {field.name for field in dataclasses.fields(ModelConfig)} - CONSIDERED
    assert not new, f"Let bwds.counterfactual do what {new} does, with a case in CASES, and then add it to CONSIDERED."


@pytest.mark.parametrize("option", [{"dtype": "bfloat16"}, {"tied_softmax": True}, {"implementation": "reference"}])
def test_own_choice_is_the_model_whatever_its_types_and_kernels(option):
    config = configuration("lstm", num_layers=1, **option)
    lm, params = language_model(config), parameters(config)
    tokens = IDS[:8].reshape(2, 4)
    wanted, _, _ = jax.jit(lm.apply)(params, tokens, lm.init_carry(2))
    found, _, _ = jax.jit(apply_choosing, static_argnums=(3, 4))(params, tokens, lm.init_carry(2), config, "own")
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("choice", ["own", "hindsight"])
def test_parameters_laid_out_for_decoding_choose_the_same(choice):
    config = configuration("lstm")
    lm, params = language_model(config), parameters(config)
    laid_out = map_kernels(lambda _, kernel: to_block_major(kernel, config.block_shape), params)
    tokens = IDS[:8].reshape(2, 4)
    wanted, _, kept = apply_choosing(params, tokens, lm.init_carry(2), config, choice)
    found, _, kept_there = apply_choosing(laid_out, tokens, lm.init_carry(2), config, choice)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for name, marks in kept.items():
        np.testing.assert_array_equal(kept_there[name], marks)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_the_model_is_refused():
    config = configuration("lstm")
    lm, params = language_model(config), parameters(config)
    carry = lm.init_carry(2)
    with pytest.raises(ValueError, match="choice is 'best'; it must be own, hindsight, or blocks for layer_0/input"):
        apply_choosing(params, IDS[:8].reshape(2, 4), carry, config, "best")
    with pytest.raises(ValueError, match="embedding"):
        apply_choosing({}, IDS[:8].reshape(2, 4), carry, config, "own")
    with pytest.raises(ValueError, match=f"tokens.*{V}"):
        apply_choosing(params, np.full((2, 4), V, np.int32), carry, config, "own")


def test_a_model_without_gates_is_refused():
    config = configuration("lstm", method="dense")
    with pytest.raises(ValueError, match="method is 'dense'; only a dynamic model chooses blocks"):
        measured(config)


def test_the_page_has_the_figures_of_the_raw_lines():
    root = Path(__file__).parents[1]
    page = (root / "docs/usage.md").read_text()
    lines = [json.loads(line) for line in (root / "benchmarks/results/counterfactual.jsonl").read_text().splitlines()]
    assert [line["config"]["model"]["cell"] for line in lines] == ["lstm", "qrnn"]
    for choice in CHOICES:
        cells = [choice]
        for found in (line["perplexities"] for line in lines):
            against = "" if choice == "own" else f"{found[choice] / found['own'] - 1:+.1%}"
            cells += [f"{found[choice]:.2f}", against]
        assert f"| {' | '.join(cells)} |" in page
    for prefix, line in zip(("", "QRNN, "), lines, strict=True):
        for name, m in line["matrices"].items():
            shares = f"{m['nearly_always']:.1%} | {m['nearly_never']:.1%}"
            shared = " | ".join(f"{m[key]:.3f}" for key in ("overlap_before", "overlap_other", "overlap_chance"))
            assert f"| {prefix}{title_of(name)} | {m['kept']} of {m['blocks']} | {shares} | {shared} |" in page
