"""Exported programs: a reader without bwds computes what the model does, in any number of streams."""

import dataclasses
import functools
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bwds import ModelConfig, Vocabulary, language_model, load_model, save_model
from bwds.export import export_programs
from bwds.tensors import flat
from bwds.tokens import EOS, learn_subwords, spelled

pytestmark = [
    # The annotations cannot check symbolic shapes.
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="exports for a CPU"),
]

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "serve_exported.py"
WORDS = ("<unk>", "<eos>", *(f"w{i}" for i in range(18)))

CLIENT = """
import runpy, sys
import numpy as np
directory, tokens, out, *batches = sys.argv[2:]
example = runpy.run_path(sys.argv[1])
server = example["Server"](directory)
found = {}
for batch in map(int, batches):
    ids = np.load(tokens)[:batch]
    for step in ("step", "step_few")[:1 + (batch == 3)]:
        read, carry = server.call["prefill"](server.parameters, ids[:, :4], server.new_carry(batch))
        steps = []
        for t in range(4, ids.shape[1]):
            logits, carry = server.call[step](server.parameters, ids[:, t], carry)
            steps.append(logits)
        found[f"{step}/{batch}"] = np.concatenate([read, np.stack(steps, 1)], 1)
        found |= {f"{step}/{batch}/{name}": state for name, state in carry.items()}
np.savez(out, **found)
print(*example["main"](directory, ["w3 w1", "w0 w9 w9 zebra"], 6), sep="\\n")
print("modules of bwds:", [name for name in sys.modules if name.split(".")[0] in ("bwds", "pallas_kernels", "flax")])
"""


def loaded(tmp_path, **options):
    config = ModelConfig(**({"vocab_size": 20, "hidden_size": 32, "num_layers": 1, "block_size": 8} | options))
    params = jax.tree.map(lambda leaf: 4 * leaf, language_model(config).init(jax.random.key(0)))
    save_model(tmp_path / "m", params, config, vocabulary=WORDS)
    return load_model(tmp_path / "m")


def without_bwds(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", CLIENT, EXAMPLE, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"gate_activation": "softplus"}, (1, 3, 20)),
        pytest.param(
            {"cell": "qrnn", "dtype": "bfloat16", "gate_source": "norm", "num_layers": 2}, (3,), marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_client_without_bwds_computes_what_the_model_does(options, batches, tmp_path):
    model = loaded(tmp_path, **options)
    export_programs(model, tmp_path / "served")
    tokens = np.random.default_rng(0).integers(0, 20, (20, 6)).astype(np.int32)
    np.save(tmp_path / "tokens.npy", tokens)
    *texts, modules = without_bwds(
        tmp_path / "served", tmp_path / "tokens.npy", tmp_path / "found.npz", *map(str, batches)
    )
    assert modules == "modules of bwds: []"
    with np.load(tmp_path / "found.npz") as file:
        found = dict(file)
    apply = jax.jit(model.model.apply)
    for batch in batches:
        # In the same two parts, because in bfloat16 the shape of a product decides how it is rounded.
        logits, carry, _ = apply(model.params, tokens[:batch, :4], model.model.init_carry(batch))
        wanted = [logits]
        for t in range(4, 6):
            logits, carry, _ = apply(model.params, tokens[:batch, t : t + 1], carry)
            wanted.append(logits)
        for step in ("step", "step_few")[: 1 + (batch == 3)]:
            close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
            close(found[f"{step}/{batch}"], np.concatenate(wanted, 1))
            for i, state in enumerate(carry):
                for name, leaf in state._asdict().items():
                    close(found[f"{step}/{batch}/layer_{i}/{name}"], leaf)
    for text, prompt in zip(texts, ("w3 w1", "w0 w9 w9 <unk>"), strict=True):
        first, *_ = model.generate(prompt, length=6, temperature=0).split("\n")
        assert text.replace("zebra", "<unk>") == first


def test_the_client_of_the_page_writes_what_the_model_does(tmp_path, monkeypatch, capsys):
    model = loaded(tmp_path, gate_activation="softplus")
    export_programs(model, tmp_path / "served")
    page = (EXAMPLE.parents[1] / "docs/sharing.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "programs.json" in code]
    prompts = ["w3 w1", "w0 w9"]
    code = code.replace('("return a", "the value")', repr(prompts)).replace("range(20)", "range(6)")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    texts = capsys.readouterr().out.splitlines()
    for text, prompt in zip(texts, prompts, strict=True):
        assert text.startswith(prompt)
        assert (
            text.replace(f" {EOS}", "\n").split("\n")[0]
            == model.generate(prompt, length=6, temperature=0).split("\n")[0]
        )


@pytest.mark.parametrize("tokens", ["character", "subword"])
def test_the_client_reads_and_writes_all_kinds_of_tokens(tokens, tmp_path, capsys):
    text = "the company said\tin \\new york\n"
    words = learn_subwords([text] * 2, 270) if tokens == "subword" else (EOS, *sorted({spelled(c) for c in text[:-1]}))
    vocabulary = Vocabulary(words, tokens)
    config = ModelConfig(vocab_size=len(words), hidden_size=32, num_layers=1, block_size=8, gate_activation="softplus")
    params = jax.tree.map(lambda leaf: 4 * leaf, language_model(config).init(jax.random.key(1)))
    save_model(tmp_path / "m", params, config, vocabulary=vocabulary)
    model = load_model(tmp_path / "m")
    export_programs(model, tmp_path / "served")
    main = runpy.run_path(str(EXAMPLE))["main"]
    prompts = ["the company", "in \\new york"]
    wanted = [model.generate(prompt, length=6, temperature=0).split("\n")[0] for prompt in prompts]
    assert wanted[0].startswith(prompts[0])
    assert len(wanted[0]) > len(prompts[0])
    assert main(tmp_path / "served", prompts, 6) == wanted
    if tokens == "character":
        with pytest.raises(SystemExit, match=r"the vocabulary has no .*'ä'.*, and no <unk>"):
            main(tmp_path / "served", ["the ä"], 6)


def test_a_missing_serializer_is_named(tmp_path, monkeypatch):
    """jax raises an ``ImportError`` of its own."""

    def serialize(*_, **__):
        raise ImportError("Please install 'flatbuffers' in order to use Exported serialization")

    monkeypatch.setattr(jax.export.Exported, "serialize", serialize)
    with pytest.raises(ValueError, match=r"'flatbuffers'.*pip install flatbuffers"):
        export_programs(loaded(tmp_path), tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_few_streams_do_not_use_the_blocks_that_none_keeps(tmp_path):
    """A bias alone chooses, so these blocks are known; NaN in them reaches nothing."""
    model = loaded(tmp_path, gate_source="bias", gate_activation="softplus")
    carry, tokens = model.model.init_carry(2), np.int32([3, 4])
    logits, _, info = jax.jit(model.model.apply)(model.params, tokens[:, None], carry)
    omitted = np.asarray(info.usage["layer_0/hidden"]) == 0
    assert omitted.any()
    hidden = model.params["layer_0"]["hidden"]
    kernel = np.where(np.kron(omitted, np.ones((8, 8))), np.nan, hidden["kernel"])
    layer = model.params["layer_0"] | {"hidden": hidden | {"kernel": jax.numpy.asarray(kernel, "float32")}}
    export_programs(dataclasses.replace(model, params=model.params | {"layer_0": layer}), tmp_path / "served")
    program = jax.export.deserialize((tmp_path / "served" / "step_few.jax_export").read_bytes())
    state = {f"layer_0/{name}": leaf for name, leaf in carry[0]._asdict().items()}
    found, _ = program.call(load_file(tmp_path / "served" / "parameters.safetensors"), tokens, state)
    np.testing.assert_allclose(found, logits[:, 0], rtol=1e-5, atol=1e-5)


def test_the_folder_says_what_is_in_it(tmp_path):
    model = loaded(tmp_path)
    export_programs(model, tmp_path / "served", platforms=["cpu", "cuda", "tpu"])
    about = json.loads((tmp_path / "served" / "programs.json").read_text())
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert json.loads((tmp_path / "served" / about["vocabulary"]).read_text()) == list(WORDS)
    held = load_file(tmp_path / "served" / about["parameters"])
    for name, array in flat(model.params).items():
        np.testing.assert_array_equal(held[name], array)
    for name, tokens, logits in (
        ("prefill", ["B", "T"], ["B", "T", 20]),
        ("step", ["B"], ["B", 20]),
        ("step_few", ["B"], ["B", 20]),
    ):
        program = about["programs"][name]
        state = [{"name": f"layer_0/{part}", "shape": ["B", 32], "dtype": "float32"} for part in "ch"]
        assert program["arguments"]["tokens"] == {"shape": tokens, "dtype": "int32"}
        assert program["arguments"]["carry"] == program["results"]["carry"] == state
        assert program["results"]["logits"] == {"shape": logits, "dtype": "float32"}
        parameters = program["arguments"]["parameters"]
        assert {entry["name"]: (tuple(entry["shape"]), entry["dtype"]) for entry in parameters} == {
            name: (array.shape, str(array.dtype)) for name, array in held.items()
        }
        read = jax.export.deserialize((tmp_path / "served" / program["file"]).read_bytes())
        assert read.platforms == ("cpu", "cuda", "tpu")
        flat_shapes = [entry["shape"] for entry in [*parameters, program["arguments"]["tokens"], *state]]
        assert flat_shapes == [[d if isinstance(d, int) else str(d) for d in aval.shape] for aval in read.in_avals]
    assert (tmp_path / "served" / "card.md").read_text() == model.card


@pytest.mark.parametrize(
    ("platforms", "message"), [(["gpu"], "platforms are 'gpu'; they must be of cpu, cuda, tpu"), ([], "are none")]
)
def test_unknown_platforms_are_refused(platforms, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_programs(loaded(tmp_path), tmp_path / "served", platforms=platforms)
    assert not (tmp_path / "served").exists()


def test_nothing_is_written_beside_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"something at '.*' already; give a new folder"):
        export_programs(loaded(tmp_path), tmp_path)
