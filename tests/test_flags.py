"""On the command line, errors of the library name flags in the place of fields."""

import dataclasses
from pathlib import Path

import pytest

from bwds import Config
from bwds.cli.flags import as_flags
from bwds.cli.train import parse


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("take a smaller data.batch_size or more text", "take a smaller --data.batch-size or more text"),
        ("mesh.model is 3, more than there are", "--mesh.model is 3, more than there are"),
        ("model: sparsity is 2.0; it must be", "--model.sparsity is 2.0; it must be"),
        ("model: a gate_source of 'norm' has none", "model: a --model.gate-source of 'norm' has none"),
        ("distributed: process is 5", "--distributed.process is 5"),
        ("it runs with implementation='xla'", "it runs with --model.implementation='xla'"),
        ("data.dataset='text' and data.directory=DIR", "--data.dataset='text' and --data.directory=DIR"),
        ("workdir is empty; without start_from", "--workdir is empty; without --start-from"),
    ],
)
def test_fields_become_flags(sentence, told):
    assert as_flags(sentence) == told


@pytest.mark.parametrize(
    "sentence",
    [
        "--data.batch-size is 3, and --model.implementation='xla'",
        "There is no file 'data.directory', nor /a/model.method",
        "The module bwds.data.text, the field model.nothing and pip's x=1",
        "model.safetensors is no file of data.files",
        "sparsity is 2.0; take another workdir",
        "model: it cannot be read",
    ],
)
def test_all_else_stays(sentence):
    assert as_flags(sentence) == sentence


def test_every_field_of_a_configuration_has_its_flag():
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.default_factory):
            assert as_flags(f"{section.name}.{field.name} is 1") == (
                f"--{section.name}.{field.name.replace('_', '-')} is 1"
            )


@pytest.mark.parametrize("start", ["--start-from", "--init-from"])
@pytest.mark.parametrize("extend", ["--extend-to", "--train.extend-to"])
def test_flags_with_two_names_mean_the_same(start, extend):
    asked = parse([start, "runs/a", extend, "7"])
    assert (asked.start_from, asked.config.train.steps, asked.extended) == (Path("runs/a"), 7, True)
