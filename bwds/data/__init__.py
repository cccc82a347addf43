"""Text as token ids: where it comes from, its vocabulary, and batches of it.

``import bwds`` does not import this package. Only ``builders`` and ``tfds`` import ``tensorflow_datasets``, and only a
download and ``tfds:NAME`` need these two.
"""

from bwds.data.corpus import Corpus, load_corpus, load_split
from bwds.vocabulary import Vocabulary

__all__ = ["Corpus", "Vocabulary", "load_corpus", "load_split"]
