"""What the builders download: text files and archives, each held to its checksum."""

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorflow_datasets.core.download.checksums import compute_url_info

from bwds.data import builders, known
from bwds.data.sources import SPLITS
from tests.texts import as_dataset, load, words, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache" / "bwds"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder, served at the address that the builders take for the origin of their data."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        for builder in builders.BUILDERS.values():
            name = builder.URL.rsplit("/", 1)[1]
            monkeypatch.setattr(builder, "URL", f"http://127.0.0.1:{server.server_port}/{name}")
        yield folder
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def expect_download(monkeypatch, builder, folder: Path) -> None:
    """Lets the files in the folder be what the builder expects to download."""
    base = builder.URL.rsplit("/", 1)[0]
    infos = {f"{base}/{path.name}": compute_url_info(path) for path in folder.iterdir()}
    monkeypatch.setattr(builder, "url_infos", infos)


def test_download_of_text_files(server, monkeypatch):
    write(server, "ptb.{}.txt", train="a b <unk>\n")
    expect_download(monkeypatch, builders.Ptb, server)
    as_dataset(monkeypatch, "ptb", server)
    assert words(load("ptb"), "train") == ["a", "b", "<unk>", "<eos>"]


@pytest.mark.parametrize("name", ["wikitext2", "wikitext103"])
def test_download_of_an_archive(server, tmp_path, monkeypatch, name):
    builder = builders.BUILDERS[name]
    text_folder = write(tmp_path / "wiki-text", "wiki.{}.tokens", train="a b <unk>\n")
    archive = server / builder.URL.rsplit("/", 1)[1]
    shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path, "wiki-text")
    expect_download(monkeypatch, builder, server)
    with pytest.raises(ValueError, match=f"tokens is not the train file of {known.KNOWN[name].title}: its sha"):
        load(name)
    as_dataset(monkeypatch, name, text_folder)
    assert words(load(name), "train") == ["a", "b", "<unk>", "<eos>"]


def test_download_with_a_wrong_checksum_is_refused(server, monkeypatch):
    write(server, "ptb.{}.txt")
    expect_download(monkeypatch, builders.Ptb, server)
    (server / "ptb.valid.txt").write_text("b\n")
    with pytest.raises(ValueError, match=r"'ptb' could not be prepared.*NonMatchingChecksumError.*ptb.valid.txt"):
        load("ptb")


def test_download_without_a_checksum_is_refused(server, monkeypatch):
    write(server, "ptb.{}.txt")
    monkeypatch.setattr(builders.Ptb, "url_infos", {})
    with pytest.raises(ValueError, match=r"'ptb' could not be prepared.*Missing checksums url"):
        load("ptb")


@pytest.mark.parametrize("builder", builders.BUILDERS.values(), ids=builders.BUILDERS)
def test_every_download_has_a_checksum(builder):
    for split in SPLITS:
        assert re.fullmatch("[0-9a-f]{64}", builder.url_infos[builder.URL.format(split)].checksum)


def test_checksums_of_penn_treebank_agree():
    infos = builders.Ptb.url_infos
    for split, checksum in known.KNOWN["ptb"].checksums.items():
        (info,) = (info for url, info in infos.items() if url.endswith(f"ptb.{split}.txt"))
        assert info.checksum == checksum
