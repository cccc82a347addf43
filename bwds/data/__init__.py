"""Text as token ids: where it comes from, its vocabulary, and batches of it.

``import bwds`` imports nothing of this; ``tensorflow_datasets`` is imported by ``builders`` and ``tfds`` only, which
nothing but a download and ``tfds:NAME`` needs.
"""

from bwds.data.corpus import Corpus, load_corpus, load_split
from bwds.vocabulary import Vocabulary

__all__ = ["Corpus", "Vocabulary", "load_corpus", "load_split"]
