"""The corpus made of the documentation that ships with Python, and its cache."""

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bwds.data import pydoc
from bwds.data.sources import SPLITS
from tests.texts import load


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache" / "bwds"


@pytest.fixture(scope="module")
def pydoc_paragraphs() -> list:
    return list(pydoc.paragraphs())


@pytest.fixture(scope="module")
def pydoc_texts(pydoc_paragraphs) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydoc, "paragraphs", lambda: pydoc_paragraphs)
        return pydoc.build()


@pytest.fixture
def pydoc_cache(cache, pydoc_texts, monkeypatch) -> Path:
    """The corpus in this test's cache, and an alarm for every further build."""
    with monkeypatch.context() as patch:
        patch.setattr(pydoc, "build", lambda: pydoc_texts)
        load("pydoc")
    monkeypatch.setattr(pydoc, "build", lambda: pytest.fail("the corpus was built again"))
    return next(cache.iterdir())


def test_pydoc_size_and_split(pydoc_cache):
    corpus = load("pydoc")
    sizes = np.array([len(corpus.train), len(corpus.valid), len(corpus.test)])
    assert 350_000 < sizes.sum() < 700_000
    assert (np.abs(sizes / sizes.sum() - [0.9, 0.05, 0.05]) < 0.03).all()
    assert 5_000 < len(corpus.vocabulary) < 12_000
    assert {"<unk>", "<eos>", "function", "return", "."} <= set(corpus.vocabulary.words)
    assert all(word == word.lower() for word in corpus.vocabulary.words)
    counts = np.bincount(corpus.train)
    assert (np.diff(counts) <= 0).all()
    assert counts[corpus.vocabulary.encode(["<unk>"])] / len(corpus.train) < 0.03


def test_pydoc_has_topics_and_docstrings(pydoc_paragraphs):
    everything = "\n".join(" ".join(line) for _, lines in pydoc_paragraphs for line in lines)
    assert "assert statements are a convenient way to insert debugging" in everything  # a topic
    assert "functions that read and write gzipped files ." in everything  # the docstring of a module, in Python
    assert "concatenate any number of strings ." in everything  # str.join, in C


def test_pydoc_does_not_leak_paragraphs_between_splits(pydoc_paragraphs):
    paragraphs = [(split, " ".join(" ".join(line) for line in lines)) for split, lines in pydoc_paragraphs]
    assert len(paragraphs) > 5_000
    assert {split for split, _ in paragraphs} == set(SPLITS)
    assert len({words for _, words in paragraphs}) == len(paragraphs)  # none occurs twice


def test_pydoc_is_built_alike_in_another_process(pydoc_texts):
    code = "import hashlib, bwds.data.pydoc as p; t = p.build(); print(hashlib.sha256(repr(t).encode()).hexdigest())"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert output.stdout.strip() == hashlib.sha256(repr(pydoc_texts).encode()).hexdigest()


def test_pydoc_cache_is_named_after_the_python_version(pydoc_cache):
    assert pydoc_cache.name.endswith(f"cpython-{sys.version.split()[0]}.json.gz")
    assert [path.name for path in pydoc_cache.parent.iterdir()] == [pydoc_cache.name]  # no temporary file stays


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other text", "missing split"])
def test_pydoc_cache_is_built_again_when_damaged(pydoc_cache, pydoc_texts, monkeypatch, damage):
    whole = pydoc_cache.read_bytes()
    middle = len(whole) // 2
    pydoc_cache.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "other text": b"no archive",
            "missing split": gzip.compress(b'{"train": "a"}'),
        }[damage]
    )
    built = []
    monkeypatch.setattr(pydoc, "build", lambda: built.append(1) or pydoc_texts)
    load("pydoc")
    load("pydoc")
    assert built == [1]
    assert pydoc_cache.read_bytes() == whole


def test_pydoc_works_where_the_cache_cannot_be_written(tmp_path, pydoc_texts, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(pydoc, "build", lambda: pydoc_texts)
    assert len(load("pydoc").train) > 300_000
    assert "could not be cached" in caplog.text


def test_pydoc_needs_a_python_with_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr(pydoc.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"too few for the pydoc corpus.*data.dataset='text'"):
        pydoc.build()
