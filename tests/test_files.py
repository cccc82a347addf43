"""One-file models: what is written is what is read, bit for bit, and nothing else is taken for one."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

import bwds
from bwds import ModelConfig, Vocabulary, decode_params, language_model, load, load_model, save_model
from bwds.digest import digest
from bwds.files import FORMAT, VERSION
from bwds.tensors import flat, nested

CONFIG = ModelConfig(vocab_size=6, hidden_size=16, num_layers=1, block_size=8, gate_activation="softplus")
WORDS = Vocabulary(("<unk>", "<eos>", "a", "b", "größer", "d"))


def initial(config, seed=0):
    return language_model(config).init(jax.random.key(seed))


def bits(tree):
    return {name: (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for name, leaf in flat(tree).items()}


@pytest.fixture(scope="module")
def params():
    return initial(CONFIG)


@pytest.fixture
def path(tmp_path, params):
    save_model(tmp_path / "model.safetensors", params, CONFIG, vocabulary=WORDS)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "tied_softmax": True},
        {"cell": "qrnn", "gate_rank": 2},
        {"gate_source": "norm"},
        {"gate_source": "random"},
        {"gate_source": "bias"},
        {"method": "dense", "num_layers": 2},
        {"method": "static-block"},
        {"method": "magnitude"},
    ],
    ids=str,
)
@pytest.mark.parametrize("laid_out", [False, True])
def test_parameters_come_back_bit_for_bit(options, laid_out, tmp_path):
    config = dataclasses.replace(CONFIG, **options)
    params = initial(config)
    given = decode_params(params, config) if laid_out else params
    save_model(tmp_path / "m", given, config, vocabulary=list(WORDS.words), card="what it is")
    loaded, stored = load_model(tmp_path / "m"), load_model(tmp_path / "m", for_decoding=False)
    assert bits(loaded.params) == bits(decode_params(params, config))
    assert bits(stored.params) == bits(given)
    assert jax.tree.structure(stored.params) == jax.tree.structure(given)
    assert (loaded.config, loaded.vocabulary, loaded.card) == (config, WORDS, "what it is")
    assert loaded.parameters_sha256 == digest(given)
    assert loaded.model is language_model(config)


def test_parameters_that_are_spread_over_devices_are_those_of_one(tmp_path, params):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    spread = jax.tree.map(lambda leaf: jax.device_put(leaf, columns) if leaf.ndim == 2 else leaf, params)
    assert len(spread["embedding"].sharding.device_set) == 2
    save_model(tmp_path / "m", spread, CONFIG)
    assert bits(load_model(tmp_path / "m", for_decoding=False).params) == bits(params)


def test_a_file_is_plain_safetensors_with_its_description(path, params):
    found = safetensors.numpy.load(path.read_bytes())
    assert bits(found) == bits(params)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == (FORMAT, str(VERSION))
    assert json.loads(metadata["config"]) == dataclasses.asdict(CONFIG)
    assert tuple(json.loads(metadata["vocabulary"])) == WORDS.words
    assert metadata["vocabulary_sha256"] == hashlib.sha256("\n".join(WORDS.words).encode()).hexdigest()
    assert metadata["parameters_sha256"] == digest(params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    for part in ("dynamic LSTM", "2001.04686", "sparsity 0.5", f"{size:,} numbers"):
        assert part in metadata["card"]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_kernel_is_that_of_the_machine_and_not_of_the_file(tmp_path, params):
    config = dataclasses.replace(CONFIG, implementation="triton")
    save_model(tmp_path / "m", params, config)
    assert load_model(tmp_path / "m").config == CONFIG


def test_it_writes_text(path):
    loaded = load(path)
    text = loaded.generate("a größer", length=9, temperature=0)
    assert text.startswith("a größer ")
    ids = bwds.generate.generate(
        loaded.model, loaded.params, [1, 2, 4], key=jax.random.key(0), length=9, temperature=0.0
    )
    assert text.split() == [word for word in ["a", "größer", *WORDS.decode(ids)] if word != "<eos>"]
    assert list(loaded.stream("a größer", length=9, temperature=0)) == WORDS.decode(ids)


def test_several_prompts_give_several_texts(path):
    loaded = load(path)
    options = {"length": 5, "temperature": 0, "ban": ["<unk>", "b"]}
    texts = loaded.generate(["a", "d a"], **options)
    assert texts == [loaded.generate(prompt, **options) for prompt in ("a", "d a")]
    assert not {"<unk>", "b"} & set(" ".join(texts).split())


def test_unknown_words_are_said(path):
    loaded = load(path)
    with pytest.warns(UserWarning, match="The vocabulary has no 'zebra'; <unk> is read instead."):
        assert loaded.generate("zebra a zebra", length=1).startswith("<unk> a <unk> ")
    with pytest.raises(ValueError, match="has no 'zebra' to ban"):
        loaded.generate("a", ban=["zebra", "a"])


def test_an_unknown_word_is_refused_where_nothing_stands_for_it(params, tmp_path):
    save_model(tmp_path / "m", params, CONFIG, vocabulary=["x", *WORDS.words[1:]])
    for write in (load(tmp_path / "m").generate, load(tmp_path / "m").stream):
        with pytest.raises(ValueError, match="'zebra' is not in the vocabulary"):
            write("zebra")


def test_another_sparsity_is_another_budget_of_a_dynamic_model(path, params, tmp_path):
    loaded = load(path)
    for sparsity in (0.0, 0.75):
        other = dataclasses.replace(loaded, config=dataclasses.replace(CONFIG, sparsity=sparsity))
        options = {"length": 5, "seed": 3, "temperature": 3.0, "top_p": 1.0}
        assert loaded.generate("a", sparsity=sparsity, **options) == other.generate("a", **options)
    with pytest.raises(ValueError, match=r"sparsity is 1\.0"):
        loaded.generate("a", sparsity=1.0)
    dense = dataclasses.replace(CONFIG, method="dense")
    save_model(tmp_path / "dense", initial(dense), dense, vocabulary=WORDS)
    with pytest.raises(ValueError, match="only a dynamic model"):
        load(tmp_path / "dense").stream("a", sparsity=0.5)


def test_without_words_there_is_no_text(tmp_path, params):
    save_model(tmp_path / "m", params, CONFIG)
    loaded = load_model(tmp_path / "m")
    assert loaded.vocabulary is None
    with pytest.raises(ValueError, match="has no vocabulary"):
        loaded.generate("a")


def without(tree, name):
    return {key: value for key, value in tree.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"params": without(p, "softmax")}, "no softmax"),
        (lambda p: {"params": p | {"more": p["embedding"]}}, "hold more"),
        (lambda p: {"params": p | {"embedding": p["embedding"][1:]}}, r"embedding of shape \(5, 16\)"),
        (
            lambda p: {"params": p | {"embedding": p["embedding"].at[1, 2].set(jnp.nan)}},
            "embedding that are not finite",
        ),
        (lambda p: {"params": p | {"embedding": p["embedding"].astype("float16")}}, "embedding of type float16"),
        (lambda p: {"params": p | {"embedding": p["embedding"].astype("bfloat16")}}, "are float32"),
        (lambda p: {"config": bwds.Config(model=CONFIG)}, "config is a Config"),
        (lambda p: {"vocabulary": ["a", "b"]}, "has 2 tokens and the model 6"),
        (lambda p: {"vocabulary": [1, 2, 3, 4, 5, 6]}, "must be of strings"),
        (lambda p: {"card": 3}, "card is a int"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_model_is_not_written(change, message, params, tmp_path):
    arguments = {"params": params, "config": CONFIG} | change(params)
    with pytest.raises(ValueError, match=message):
        save_model(tmp_path / "m", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(path, params, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="cannot be written: no space"):
        save_model(path, params, CONFIG)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def rewritten(path, change_tensors=lambda t: t, again=True, **metadata):
    """Rewrites the file with other tensors or metadata; with ``again`` its digests are made anew."""
    with safetensors.safe_open(path, "np") as file:
        found = file.metadata()
    tensors = change_tensors(safetensors.numpy.load(path.read_bytes()))
    found = {name: value for name, value in (found | metadata).items() if value is not None}
    if again:
        if "parameters_sha256" not in metadata:
            found["parameters_sha256"] = digest(nested(tensors))
        rest = {name: value for name, value in found.items() if name != "metadata_sha256"}
        found["metadata_sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    path.write_bytes(safetensors.numpy.save(tensors, found))


def changed(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


def nan_at(array):
    array = array.copy()
    array[0] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"again": False, "config": json.dumps(dataclasses.asdict(CONFIG) | {"sparsity": 0.75})}, "metadata are not"),
        ({"again": False, "card": "better than it is"}, "metadata are not those of their digest"),
        ({"again": False, "change_tensors": changed("embedding", np.negative)}, "not those of their digest"),
        ({"parameters_sha256": "0" * 64}, "not those of their digest"),
        ({"vocabulary_sha256": "0" * 64}, "vocabulary is not that of its digest"),
        ({"vocabulary": json.dumps([*WORDS.words[:-1], "a"])}, "'a' twice"),
        ({"vocabulary": "7"}, "no model that can be used"),
        ({"version": "2"}, "of version '2' of the format, and this bwds reads version 1; take a later bwds"),
        ({"format": "pt"}, "none of bwds.save_model"),
        ({"config": "{"}, "not valid JSON"),
        ({"config": "[" * 100_000}, "not valid JSON"),
        ({"config": json.dumps(dataclasses.asdict(CONFIG) | {"later": 1})}, "unknown options: later"),
        ({"config": json.dumps(dataclasses.asdict(CONFIG) | {"hidden_size": 24})}, r"embedding of shape \(6, 16\)"),
        ({"card": None}, "metadata are not"),
        ({"change_tensors": lambda t: without(t, "softmax/bias")}, "has no softmax/bias"),
        ({"change_tensors": lambda t: t | {"a/b": t["softmax/bias"]}}, "has 'a/b', which no model"),
        (
            {"change_tensors": lambda t: t | {"embedding/x": t["softmax/bias"]}, "parameters_sha256": "0" * 64},
            "has 'embedding/x', which no model",
        ),
        ({"change_tensors": changed("softmax/bias", lambda a: a[None])}, r"softmax/bias of shape \(1, 6\)"),
        ({"change_tensors": changed("softmax/bias", np.float64)}, "type float64"),
        ({"change_tensors": changed("softmax/bias", nan_at)}, "softmax/bias that are not finite"),
    ],
)
def test_another_file_is_refused_in_a_sentence(change, message, path):
    rewritten(path, **change)
    with pytest.raises(ValueError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_rewritten_file_that_is_right_is_taken(path, params):
    """So the cases above are refused for what they change, not for being rewritten."""
    rewritten(path)
    assert bits(load_model(path, for_decoding=False).params) == bits(params)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_file_that_was_cut_short_is_refused(length, path):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="no whole file of safetensors"):
        load(path)


def test_any_byte_that_changes_is_noticed(path):
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            load(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 not a model", b"\x80\x04 a pickle, perhaps", b"[]" * 500])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ValueError, match="no whole file of safetensors"):
        load(tmp_path / "m")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file '.*nothing\.safetensors'"):
        load(tmp_path / "nothing.safetensors")


def run_folder(folder):
    """What a run leaves there, its checkpoints apart."""
    (folder / "config.json").write_text(bwds.Config(model=CONFIG).to_json())
    (folder / "checkpoints" / "best").mkdir(parents=True)
    WORDS.save(folder / "vocabulary.txt")


def test_the_folder_of_a_finished_run_needs_nothing_of_training(path, tmp_path):
    code = f"""
import sys
sys.modules["orbax"] = sys.modules["orbax.checkpoint"] = sys.modules["tyro"] = None
import bwds
print(bwds.load({str(tmp_path)!r}).parameters_sha256)
"""
    run_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(path.read_bytes())
    (tmp_path / "summary.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == load(path).parameters_sha256


def test_a_missing_package_is_named_with_what_to_install(path, tmp_path):
    code = f"""
import sys
sys.modules["safetensors"] = sys.modules["orbax"] = sys.modules["orbax.checkpoint"] = None
import bwds
for path in ({str(path)!r}, {str(tmp_path)!r}):
    try:
        bwds.load(path)
    except ValueError as error:
        print(error)
"""
    run_folder(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    of_file, of_folder = done.stdout.splitlines()
    assert "need safetensors, which is not installed: pip install -e " in of_file
    assert "bwds eval --workdir" in of_folder
    assert "--export FILE" in of_folder
