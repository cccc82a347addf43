"""Language models of PyTorch: the same logits, by its equations in float64 and by itself; and what is refused."""

import sys

import jax
import numpy as np
import pytest

import bwds.pytorch
from bwds import language_model

V, H = 11, 6
TOKENS = np.random.default_rng(3).integers(0, V, (2, 7)).astype(np.int32)


def tensors(layers=2, *, tied=False, prefix="rnn.", seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    found = {"encoder.weight": draw(V, H), "decoder.weight": draw(V, H), "decoder.bias": draw(V)}
    if tied:
        del found["decoder.weight"]
    for i in range(layers):
        shapes = {"weight_ih": (4 * H, H), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)}
        found |= {f"{prefix}{name}_l{i}": 0.5 * draw(*shape) for name, shape in shapes.items()}
    return found


def by_the_equations(t, layers, prefix="rnn."):
    """Logits [B, T, V] as the documentation of torch.nn.LSTM has them, in float64."""
    t = {name: np.asarray(value, np.float64) for name, value in t.items()}
    x = t["encoder.weight"][TOKENS]
    for i in range(layers):
        w_ih, w_hh, b_ih, b_hh = (t[f"{prefix}{n}_l{i}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = c = np.zeros((len(TOKENS), H))
        outputs = []
        for step in range(TOKENS.shape[1]):
            parts = (x[:, step] @ w_ih.T + b_ih + h @ w_hh.T + b_hh).reshape(len(TOKENS), 4, H)
            gate_i, gate_f, gate_o = (1.0 / (1.0 + np.exp(-parts[:, part])) for part in (0, 1, 3))
            c = gate_f * c + gate_i * np.tanh(parts[:, 2])
            h = gate_o * np.tanh(c)
            outputs.append(h)
        x = np.stack(outputs, axis=1)
    return x @ t.get("decoder.weight", t["encoder.weight"]).T + t["decoder.bias"]


def logits(params, config):
    lm = language_model(config)
    return lm.apply(params, TOKENS, lm.init_carry(len(TOKENS)))[0]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("prefix", ["rnn.", "", "model.lstm."])
def test_logits_are_those_of_the_equations(layers, tied, prefix):
    t = tensors(layers, tied=tied, prefix=prefix)
    params, config = bwds.pytorch.from_pytorch(t)
    assert (config.num_layers, config.tied_softmax, config.method) == (layers, tied, "dense")
    np.testing.assert_allclose(logits(params, config), by_the_equations(t, layers, prefix), rtol=0, atol=1e-5)


def test_a_softmax_equal_to_the_embedding_is_tied():
    t = tensors()
    params, config = bwds.pytorch.from_pytorch(t | {"decoder.weight": t["encoder.weight"].copy()})
    assert config.tied_softmax
    assert params["softmax"].keys() == {"bias"}


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_pytorch(tied, tmp_path):
    """Its own word language model, in a file written by safetensors itself."""
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(V, H)
            self.rnn = torch.nn.LSTM(H, H, num_layers=2, batch_first=True)
            self.decoder = torch.nn.Linear(H, V)
            if tied:
                self.decoder.weight = self.encoder.weight

        def forward(self, tokens):
            return self.decoder(self.rnn(self.encoder(tokens))[0])

    torch.manual_seed(0)
    model = Model()
    files.save_model(model, str(tmp_path / "model.safetensors"))
    params, config = bwds.pytorch.load_pytorch(tmp_path / "model.safetensors")
    with torch.no_grad():
        wanted = model(torch.from_numpy(TOKENS).long()).numpy()
    np.testing.assert_allclose(logits(params, config), wanted, rtol=0, atol=1e-4)
    assert config.tied_softmax == tied


def test_a_file_and_half_precision(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    flax_files = pytest.importorskip("safetensors.flax")
    t = tensors(1)
    numpy_files.save_file(t, tmp_path / "full.safetensors")
    params, config = bwds.pytorch.load_pytorch(tmp_path / "full.safetensors")
    np.testing.assert_allclose(logits(params, config), by_the_equations(t, 1), rtol=0, atol=1e-5)
    half = {name: jax.numpy.asarray(value, jax.numpy.bfloat16) for name, value in t.items()}
    flax_files.save_file(half, tmp_path / "half.safetensors")
    params, config = bwds.pytorch.load_pytorch(str(tmp_path / "half.safetensors"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    rounded = {name: np.asarray(value, np.float32) for name, value in half.items()}
    np.testing.assert_allclose(logits(params, config), by_the_equations(rounded, 1), rtol=0, atol=1e-5)


def without(*names):
    return lambda t: {name: value for name, value in t.items() if name not in names}


REFUSED = {
    "a missing bias": (without("rnn.bias_hh_l1"), "There is no rnn.bias_hh_l1; a model of 2 layers has"),
    "a missing embedding": (without("encoder.weight"), "There is no encoder.weight"),
    "a missing layer": (
        without(*(f"rnn.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))),
        "There is no rnn.bias_hh_l0, rnn.bias_ih_l0",
    ),
    "no LSTM": (lambda t: {"encoder.weight": t["encoder.weight"]}, "There is no weight_ih_l0 among the tensors"),
    "both directions": (lambda t: t | {"rnn.weight_ih_l0_reverse": t["rnn.weight_ih_l0"]}, "no place for rnn.weight_"),
    "a projection": (lambda t: t | {"rnn.weight_hr_l0": np.zeros((3, H), np.float32)}, "no place for rnn.weight_hr_l0"),
    "two LSTMs": (lambda t: t | tensors(1, prefix="other."), "several LSTMs, 'other.', 'rnn.'"),
    "another embedding": (
        lambda t: t | {"encoder.weight": np.zeros((V, 4), np.float32)},
        "embedding has size 4 and the hidden state 6: here one size holds for both",
    ),
    "a GRU": (
        lambda t: t | {"rnn.weight_hh_l0": np.zeros((3 * H, H), np.float32)},
        r"rnn.weight_hh_l0 has shape \(18, 6\); in an LSTM of 6 units, 11 tokens: \(24, 6\)",
    ),
    "another vocabulary": (lambda t: t | {"decoder.bias": np.zeros(V + 1, np.float32)}, r"decoder.bias has shape \(12"),
    "whole numbers": (lambda t: t | {"decoder.bias": np.zeros(V, np.int32)}, "decoder.bias is of type int32"),
    "a flat embedding": (lambda t: t | {"encoder.weight": np.zeros(V, np.float32)}, r"encoder.weight has shape \(11"),
    "no number": (
        lambda t: t | {"decoder.bias": np.full(V, np.nan, np.float32)},
        "decoder.bias holds numbers",
    ),
    "a list": (lambda t: [t], "tensors is a list; it must be a mapping"),
    "a layer far away": (lambda t: t | {"rnn.bias_hh_l999999999": np.zeros(4 * H, np.float32)}, "of 1000000000 layers"),
}


def test_names_of_data_parallel_models_are_understood():
    t = tensors()
    params, config = bwds.pytorch.from_pytorch({f"module.{name}": value for name, value in t.items()})
    wanted, same = bwds.pytorch.from_pytorch(t)
    assert config == same
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_model_is_refused(case, unchecked):
    change, named = REFUSED[case]
    with pytest.raises(ValueError, match=named):
        bwds.pytorch.from_pytorch(change(tensors()))


def test_a_tied_matrix_that_is_written_once_has_both_names(tmp_path):
    """``safetensors.torch.save_model`` keeps one of two names, the first by the alphabet, and notes the other."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    held = tensors()
    held["decoder.weight"] = held.pop("encoder.weight")
    file = tmp_path / "model.safetensors"
    numpy_files.save_file(held, file, {"encoder.weight": "decoder.weight"})
    params, config = bwds.pytorch.load_pytorch(file)
    assert config.tied_softmax
    np.testing.assert_array_equal(params["embedding"], held["decoder.weight"])
    numpy_files.save_file(held, file)
    with pytest.raises(ValueError, match=r"There is no encoder\.weight"):
        bwds.pytorch.load_pytorch(file)


def test_a_file_that_is_none_of_safetensors_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    for content in (b"", b"PK\x03\x04 a pickle in an archive", b"\x80\x04." * 40):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"model.pt is no whole file of safetensors .* safetensors.torch"):
            bwds.pytorch.load_pytorch(tmp_path / "model.pt")
    with pytest.raises(OSError, match=r"nowhere.safetensors"):
        bwds.pytorch.load_pytorch(tmp_path / "nowhere.safetensors")


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"pip install safetensors"):
        bwds.pytorch.load_pytorch(tmp_path / "model.safetensors")


def test_tensors_of_the_wrong_model_name_their_file(tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    numpy_files.save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors: There is no weight_ih_l0"):
        bwds.pytorch.load_pytorch(tmp_path / "other.safetensors")
