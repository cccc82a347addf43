"""The examples run, and what they train learns."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from bwds.config import DataConfig
from bwds.data import load_corpus

pytestmark = pytest.mark.optimized  # Adam on millions of parameters
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_feed_forward_language_model():
    corpus = load_corpus(DataConfig(dataset="pydoc", vocab_limit=5000))
    counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary)) + 1
    by_frequency = np.exp(-np.log(counts / counts.sum())[corpus.valid].mean())

    perplexities = runpy.run_path(str(EXAMPLES / "feed_forward_lm.py"))["main"](steps=150)
    assert list(perplexities) == ["dense", "half of the blocks"]
    assert all(perplexity < by_frequency for perplexity in perplexities.values())
