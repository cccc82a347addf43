"""Measurements of times, perplexities and programs for TPU slices, and the pages of docs/ that are made of them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the repository."""
