"""The method once more in NumPy float64, written from its equations alone: what the tests compare against.

Clear rather than fast: loops over blocks, rows and time steps. Nothing here imports ``bwds`` or JAX. Letters as in
``bwds.array_types``. Parameters are the nested dictionaries of the library, in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FLOORS = {"mean": 1e-4, "bounded": 0.1}
"""Smallest |sum of the kept scores| that a linear gate divides by, relative to the sum of their magnitudes."""
LOWEST = -40.0
"""Scores below this count as this in a softplus gate; in a softmax gate, those as far below the largest kept one."""


class Rule(NamedTuple):
    """How scores [R, C] become gates."""

    rows: int
    columns: int
    num_kept: int
    activation: str = "linear"
    scope: str = "matrix"
    normalization: str = "mean"
    source: str = "learned"


def f64(tree: Any) -> Any:
    """Every array of a nested dictionary as float64."""
    if isinstance(tree, dict):
        return {name: f64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def sigmoid(v: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * v))


# Gates ----------------------------------------------------------------------------------------------------------------


def kept_mask(scores: np.ndarray, num_kept: int, scope: str = "matrix") -> np.ndarray:
    """Which blocks of scores [R, C] are kept: ``num_kept`` of the matrix, or of every column; ties go to the first."""
    groups = scores if scope == "column" else scores.reshape(-1, 1)
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, np.argsort(-groups, axis=0, kind="stable")[:num_kept], True, axis=0)
    return mask.reshape(scores.shape)


def margin(scores: np.ndarray, num_kept: int, scope: str = "matrix") -> float:
    """Distance between the smallest kept and the largest omitted score: above rounding, the choice is certain."""
    groups = np.sort(scores if scope == "column" else scores.reshape(-1, 1), axis=0)[::-1]
    return np.inf if num_kept == len(groups) else (groups[num_kept - 1] - groups[num_kept]).min()


def _centred_over_root(kept: np.ndarray) -> tuple[np.ndarray, float]:
    """Kept scores minus their mean, and the root of one more than their mean square."""
    centred = kept - kept.mean()
    return centred, np.sqrt((centred**2).mean() + 1.0)


def _gates_of(scores: np.ndarray, mask: np.ndarray, activation: str, normalization: str) -> np.ndarray:
    kept = scores[mask]
    size = scores.size
    if activation == "softplus":
        kept = np.logaddexp(0.0, np.maximum(kept, LOWEST))
    elif activation == "softmax":
        kept = np.exp(np.maximum(kept - kept.max(), LOWEST))
    if activation == "relu":
        centred, root = _centred_over_root(kept)
        above = kept if normalization == "none" else (1.0 + centred / root) * size / kept.size
        values = np.maximum(above, 0.0)
    elif normalization == "none":
        values = kept
    elif activation in ("softplus", "softmax"):
        values = kept / kept.sum() * size
    else:
        largest = np.abs(kept).max()
        if largest == 0.0:
            values = np.full(kept.shape, size / kept.size)
        else:
            kept = kept / largest
            total, floor = kept.sum(), FLOORS[normalization] * np.abs(kept).sum()
            if abs(total) < floor:
                total = -floor if total < 0 else floor
            values = kept / total * size
    gates = np.zeros(scores.shape)
    gates[mask] = values
    return gates


def gates(
    scores: Any, num_kept: int, activation: str = "linear", scope: str = "matrix", normalization: str = "mean"
) -> np.ndarray:
    """gates [..., R, C] of scores [..., R, C], each matrix by itself."""
    scores = np.asarray(scores, np.float64)
    flat = scores.reshape(-1, *scores.shape[-2:])
    made = [_gates_of(s, kept_mask(s, num_kept, scope), activation, normalization) for s in flat]
    return np.stack(made).reshape(scores.shape)


def gates_gradient(
    scores: Any,
    cotangent: Any,
    num_kept: int,
    activation: str = "linear",
    scope: str = "matrix",
    normalization: str = "mean",
) -> np.ndarray:
    """Gradient of sum(gates * cotangent) with respect to scores that are not all zero.

    With p the kept scores after the activation, S their sum and n = R*C: gates = n p / S, so that
    d/dp_j = n / S * (cotangent_j - sum_i cotangent_i p_i / S). A floor in place of S is a constant, and then
    d/dp_j = n / floor * cotangent_j. ReLU gates of k kept scores are n / k max(1 + u, 0), u = (s - mean(s)) / q, with
    du_i/ds_j = (delta_ij - 1 / k - u_i u_j / k) / q.
    """
    scores, cotangent = np.asarray(scores, np.float64), np.asarray(cotangent, np.float64)
    result = np.zeros(scores.shape)
    for index in np.ndindex(scores.shape[:-2]):
        s, v = scores[index], cotangent[index]
        mask = kept_mask(s, num_kept, scope)
        if activation == "relu":
            centred, q = _centred_over_root(s[mask])
            u, k = centred / q, mask.sum()
            reached = np.where(1.0 + u > 0, v[mask], 0.0)
            result[index][mask] = s.size / (k * q) * (reached - reached.mean() - (reached * u).sum() * u / k)
            continue
        if activation == "softplus":
            p = np.logaddexp(0.0, np.maximum(s[mask], LOWEST))
            slope = np.where(s[mask] > LOWEST, sigmoid(s[mask]), 0.0)
        elif activation == "softmax":
            p = np.exp(np.maximum(s[mask] - s[mask].max(), LOWEST))
            slope = np.where(s[mask] - s[mask].max() > LOWEST, p, 0.0)
        else:
            p, slope = s[mask], np.ones(int(mask.sum()))
        total, floor = p.sum(), FLOORS[normalization] * np.abs(p).sum()
        if abs(total) < floor:
            result[index][mask] = s.size / (-floor if total < 0 else floor) * v[mask]
        else:
            result[index][mask] = s.size / total * (v[mask] - (v[mask] * p).sum() / total) * slope
    return result


# The block-sparse product ---------------------------------------------------------------------------------------------


def block_major(w: np.ndarray, block_shape: tuple[int, int]) -> np.ndarray:
    """w [K, N] as [C, R, K/R, N/C], block by block."""
    bk, bn = block_shape
    rows, columns = w.shape[0] // bk, w.shape[1] // bn
    return np.stack(
        [np.stack([w[r * bk : (r + 1) * bk, c * bn : (c + 1) * bn] for r in range(rows)]) for c in range(columns)]
    )


def matmul(x: Any, w: Any, gates: Any) -> np.ndarray:
    """y [..., N] of x [..., K], w [K, N] and gates [..., R, C]: kept blocks only."""
    x, w, gates = f64(x), f64(w), f64(gates)
    rows, columns = gates.shape[-2:]
    bk, bn = w.shape[0] // rows, w.shape[1] // columns
    y = np.zeros((*x.shape[:-1], w.shape[1]))
    for index in np.ndindex(x.shape[:-1]):
        for r in range(rows):
            for c in range(columns):
                if gates[index][r, c] != 0:
                    i, j = slice(r * bk, (r + 1) * bk), slice(c * bn, (c + 1) * bn)
                    y[index][j] += gates[index][r, c] * (x[index][i] @ w[i, j])
    return y


def matmul_gradients(x: Any, w: Any, gates: Any, dy: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dx, dw, dgates) of sum(y * dy); dgates is zero outside the support of the gates."""
    x, w, gates, dy = f64(x), f64(w), f64(gates), f64(dy)
    rows, columns = gates.shape[-2:]
    bk, bn = w.shape[0] // rows, w.shape[1] // columns
    dx, dw, dgates = np.zeros(x.shape), np.zeros(w.shape), np.zeros(gates.shape)
    for index in np.ndindex(x.shape[:-1]):
        for r in range(rows):
            for c in range(columns):
                g = gates[index][r, c]
                if g != 0:
                    i, j = slice(r * bk, (r + 1) * bk), slice(c * bn, (c + 1) * bn)
                    back = w[i, j] @ dy[index][j]
                    dx[index][i] += g * back
                    dw[i, j] += g * np.outer(x[index][i], dy[index][j])
                    dgates[index][r, c] = x[index][i] @ back
    return dx, dw, dgates


# Recurrent layers -----------------------------------------------------------------------------------------------------


def gate_scores(gate: dict, x: np.ndarray) -> np.ndarray:
    """Scores [B, R*C] of x [B, K]; a low-rank gate has two factors instead of a kernel."""
    kernel = gate["down"] @ gate["up"] if "down" in gate else gate["kernel"]
    return x @ kernel + gate["bias"]


def block_norms(w: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Frobenius norms [R, C] of the blocks of w [K, N]."""
    bk, bn = w.shape[0] // rows, w.shape[1] // columns
    norms = np.zeros((rows, columns))
    for r in range(rows):
        for c in range(columns):
            norms[r, c] = np.sqrt((w[r * bk : (r + 1) * bk, c * bn : (c + 1) * bn] ** 2).sum())
    return norms


def norm_scores(w: np.ndarray, x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """||x_r|| ||w_rc||: scores [B, R, C] of x [B, K] that need no gate."""
    lengths = np.stack([np.sqrt((part**2).sum(-1)) for part in np.split(x, rows, axis=-1)], -1)
    return lengths[:, :, None] * block_norms(w, rows, columns)


def product(params: dict, x: np.ndarray, rule: Rule | None) -> tuple[np.ndarray, np.ndarray | None, float]:
    """(y [B, N], gates [B, R, C], margin of the choice) of x [B, K]; a plain product where ``rule`` is None."""
    kernel = params["kernel"]
    if rule is None:
        return x @ kernel, None, np.inf
    if rule.source == "norm":
        scores = norm_scores(kernel, x, rule.rows, rule.columns)
        g = np.stack([kept_mask(s, rule.num_kept, rule.scope) for s in scores]).astype(float)
    else:
        scores = gate_scores(params["gate"], x).reshape(-1, rule.rows, rule.columns)
        g = gates(scores, rule.num_kept, rule.activation, rule.scope, rule.normalization)
    bk, bn = kernel.shape[0] // rule.rows, kernel.shape[1] // rule.columns
    blocks = kernel.reshape(rule.rows, bk, rule.columns, bn)
    y = np.einsum("brk,rkcn,brc->bcn", x.reshape(-1, rule.rows, bk), blocks, g).reshape(x.shape[0], -1)
    return y, g, min(margin(s, rule.num_kept, rule.scope) for s in scores)


class Trace(NamedTuple):
    """What a layer computed: outputs [B, T, H], the final carry, gates of every product [B, T, R, C], choice margin."""

    outputs: np.ndarray
    carry: tuple[np.ndarray, ...]
    gates: dict[str, np.ndarray]
    margin: float


def lstm(params: dict, xs: np.ndarray, carry: tuple, rules: dict[str, Rule | None]) -> Trace:
    """LSTM layer: products ``input`` and ``hidden`` to the parts i, f, g, o, one ``bias`` [4H]; carry (h, c)."""
    h, c = carry
    outputs, kept, closest = [], {"input": [], "hidden": []}, np.inf
    for t in range(xs.shape[1]):
        from_x, gates_x, margin_x = product(params["input"], xs[:, t], rules["input"])
        from_h, gates_h, margin_h = product(params["hidden"], h, rules["hidden"])
        i, f, g, o = np.split(from_x + from_h + params["bias"], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
        kept["input"].append(gates_x)
        kept["hidden"].append(gates_h)
        closest = min(closest, margin_x, margin_h)
    return Trace(np.stack(outputs, 1), (h, c), _stack(kept), closest)


def qrnn(params: dict, xs: np.ndarray, carry: tuple, rules: dict[str, Rule | None]) -> Trace:
    """QRNN layer: ``input`` on [x_{t-1}; x_t] to the parts z, f, o, ``bias`` [3H]; fo-pooling; carry (last x, c)."""
    previous, c = carry
    outputs, kept, closest = [], {"input": []}, np.inf
    for t in range(xs.shape[1]):
        pair = np.concatenate([previous, xs[:, t]], axis=-1)
        y, g, closeness = product(params["input"], pair, rules["input"])
        z, f, o = np.split(y + params["bias"], 3, axis=-1)
        z, f, o = np.tanh(z), sigmoid(f), sigmoid(o)
        c = f * c + (1.0 - f) * z
        previous = xs[:, t]
        outputs.append(o * c)
        kept["input"].append(g)
        closest = min(closest, closeness)
    return Trace(np.stack(outputs, 1), (previous, c), _stack(kept), closest)


def _stack(kept: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.stack(steps, 1) for name, steps in kept.items() if steps[0] is not None}


# Gradients by differences ---------------------------------------------------------------------------------------------


def differences(function: Callable[[Any], float], tree: Any, *, step: float = 1e-6) -> Any:
    """Central differences of a scalar function with respect to every entry of a nested dictionary of small arrays."""
    work = f64(tree) if isinstance(tree, dict) else {"": np.array(tree, np.float64)}
    call = function if isinstance(tree, dict) else lambda nested: function(nested[""])

    def walk(node: dict) -> dict:
        result = {}
        for name, value in node.items():
            if isinstance(value, dict):
                result[name] = walk(value)
                continue
            value = node[name] = np.array(value)
            gradient = np.zeros(value.shape)
            for index in np.ndindex(value.shape):
                kept = value[index]
                value[index] = kept + step
                up = call(work)
                value[index] = kept - step
                gradient[index] = (up - call(work)) / (2 * step)
                value[index] = kept
            result[name] = gradient
        return result

    gradients = walk(work)
    return gradients if isinstance(tree, dict) else gradients[""]


class Slopes(NamedTuple):
    """What a scalar function gains along some directions of one array: ``along`` [n, *shape], ``gains`` [n]."""

    along: np.ndarray
    gains: np.ndarray


def slopes(function: Callable[[Any], float], tree: Any, *, step: float = 1e-6) -> Any:
    """Central differences of a scalar function along six directions of every array of a nested dictionary.

    Each direction changes every entry by as much, up or down at random. So an entry of a gradient that is wrong by some
    amount is seen as exactly that amount in each of them, unless others make up for it in all six.
    """
    work, rng = f64(tree), np.random.default_rng(0)

    def walk(node: dict) -> dict:
        result = {}
        for name, value in node.items():
            if isinstance(value, dict):
                result[name] = walk(value)
                continue
            along, gains = rng.choice([-1.0, 1.0], (6, *value.shape)), []
            for direction in along:
                node[name] = value + step * direction
                up = function(work)
                node[name] = value - step * direction
                gains.append((up - function(work)) / (2 * step))
            node[name] = value
            result[name] = Slopes(along, np.array(gains))
        return result

    return walk(work)


def assert_slopes(gradients: Any, wanted: Any, *, tolerance: float, name: str = "") -> None:
    """Gradients have these slopes, within ``tolerance`` of the largest magnitude in each array."""
    if isinstance(wanted, dict):
        assert gradients.keys() == wanted.keys(), name
        for key in wanted:
            assert_slopes(gradients[key], wanted[key], tolerance=tolerance, name=f"{name}/{key}")
        return
    gradient = f64(gradients)
    gains = (wanted.along * gradient).reshape(len(wanted.along), -1).sum(1)
    largest = np.abs(gradient).max(initial=0.0)
    np.testing.assert_allclose(gains, wanted.gains, rtol=0, atol=tolerance * largest + 1e-8, err_msg=name)


def assert_close(actual: Any, wanted: Any, *, tolerance: float, name: str = "") -> None:
    """Nested dictionaries agree, array by array, within ``tolerance`` of the largest magnitude of each array."""
    if isinstance(wanted, dict):
        assert actual.keys() == wanted.keys(), name
        for key in wanted:
            assert_close(actual[key], wanted[key], tolerance=tolerance, name=f"{name}/{key}")
        return
    np.testing.assert_allclose(f64(actual), wanted, rtol=0, atol=tolerance * np.abs(wanted).max(), err_msg=name)
