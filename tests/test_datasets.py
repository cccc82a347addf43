"""The sources of text: the pydoc corpus, folders of text files, TFDS builders of ours and of others."""

import bz2
import gzip
import lzma
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bwds.config import DataConfig
from bwds.data import builders, load_split, text
from bwds.data import tfds as tfds_source
from bwds.data.sources import SPLITS, cache_dir
from tests.texts import as_dataset, load, words, write

_PTB = Path(os.environ.get("BWDS_PTB_DIRECTORY", Path(__file__).parents[2] / "shared" / "data" / "ptb"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache" / "bwds"


# --- text


@pytest.mark.parametrize("name", ["{}.txt", "{}.tokens", "ptb.{}.txt", "wiki.{}.tokens"])
def test_text_file_names(tmp_path, name):
    write(tmp_path, name, train="x y\n")
    files = text.find_files(tmp_path)
    assert {split: path.name for split, path in files.items()} == {split: name.format(split) for split in SPLITS}


def test_text_errors(tmp_path):
    folder = write(tmp_path / "text")
    (folder / "valid.txt").unlink()
    with pytest.raises(
        ValueError, match=r"No valid split in .*; looked for valid.txt, valid.tokens, ptb.valid.txt, wiki.valid.tokens"
    ):
        load("text", folder)
    (folder / "valid.txt").write_text("")
    with pytest.raises(ValueError, match=r"valid.txt is empty"):
        load("text", folder)
    (folder / "valid.txt").write_bytes(b"a\na b\na \xff\n")
    with pytest.raises(ValueError, match=r"valid.txt is not UTF-8 text: byte 8, on line 3, is 0xff"):
        load("text", folder)


def test_text_is_split_on_any_white_space_and_a_byte_order_mark_is_dropped(tmp_path):
    # A mark stands where a file begins; two stand where a file was joined to another.
    write(tmp_path, train="\ufeffa\tb\u00a0c\r\n\u2028d\x0ce\n\ufeff\ufeffa\n", valid="a\n", test="e\n")
    assert words(load("text", tmp_path), "train") == ["a", "b", "c", "<eos>", "d", "e", "<eos>", "a", "<eos>"]


NO_TEXT = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b\n",
    "Git LFS, after a mark": b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "git-annex": b"/annex/objects/SHA256E-s12--4d7a214614ab2935c943f9e0ff69d22eadbb8f32b.txt\n",
    "DVC": b"outs:\n- md5: d8e8fca2dc0f896fd7cb4cb0031ba249\n  size: 9\n  path: test.txt\n",
    "RTF": b"{\\rtf1\\ansi a b}\n",
    "answer of a server": b'{"error": "not found"}\n',
    "page": b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>\n",
    "page of a store": b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
    "page of a raw file": b"404: Not Found",
    "page of a hub": b"Entry not found\n",
    "gzip": gzip.compress(b"a b\n"),
    "bzip2": bz2.compress(b"a b\n"),
    "xz": lzma.compress(b"a b\n"),
    "zip": b"PK\x03\x04\x14\x00\x00\x00",
    "UTF-16": "a b\n".encode("utf-16"),
    "UTF-16 without mark": "a b\n".encode("utf-16-le"),
    "NUL": b"a b\na\0b\n",
    "joined inside a line": b"a b\nb\xef\xbb\xbfa b\n",
}
WAYS_OUT = {
    "Git LFS": "pointer of Git LFS.*Run git lfs pull",
    "Git LFS, after a mark": "pointer of Git LFS.*Run git lfs pull",
    "git-annex": "pointer of git-annex.*Run git annex get",
    "DVC": "pointer of DVC.*Run dvc pull",
    "RTF": "no text: .*plain text file",
    "gzip": "compressed: .*Decompress",
    "bzip2": "compressed: ",
    "xz": "compressed: ",
    "zip": "an archive: .*Unpack",
    "UTF-16": "UTF-16 or UTF-32: .*Convert the file to UTF-8",
    "UTF-16 without mark": "NUL character on line 1: it is UTF-16",
    "NUL": "NUL character on line 2",
    "joined inside a line": r"byte order mark \(U\+FEFF\) in the middle of line 2",
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_stands_in_for_a_text_is_refused_by_its_name(tmp_path, kind):
    (write(tmp_path) / "test.txt").write_bytes(NO_TEXT[kind])
    way_out = WAYS_OUT.get(kind, "the page of a server and no text: .*download it again")
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'test.txt'))} (is|has) (a )?{way_out}"):
        load("text", tmp_path)


def test_an_eos_that_the_text_has_is_not_doubled(tmp_path):
    write(tmp_path, train="a <eos> b <eos>\nb<eos>\n<eos>\n\n", valid="<eos> a <eos> \r\n", test="<eos>\na")
    corpus = load("text", tmp_path)
    assert words(corpus, "train") == ["a", "<eos>", "b", "<eos>", "b<eos>", "<eos>", "<eos>", "<eos>"]
    assert words(corpus, "valid") == ["<eos>", "a", "<eos>"]
    assert words(corpus, "test") == ["<eos>", "a", "<eos>"]


@pytest.mark.parametrize("blank", ["\n", " \n\t\n\n", "<eos>\n\n", "\r\n"])
def test_a_text_without_words_is_refused(tmp_path, blank):
    for split in SPLITS:
        write(tmp_path, **{split: blank})
        with pytest.raises(ValueError, match=rf"{split}.txt has no tokens, only \d blank lines"):
            load("text", tmp_path)
        write(tmp_path)
    write(tmp_path, train="a <unk> a\n")
    with pytest.raises(ValueError, match=r"train.txt has only the word 'a'"):
        load("text", tmp_path)
    write(tmp_path, train="a" * 20_000)
    with pytest.raises(ValueError, match=r"train.txt has only the word 'aaa{8,20}\.\.\.a{9,20}'; there is"):
        load("text", tmp_path)
    write(tmp_path, train="<unk>\n")
    with pytest.raises(ValueError, match=r"train.txt has no word but <unk>"):
        load("text", tmp_path)


def test_a_held_out_text_of_other_words_is_told(tmp_path):
    write(tmp_path, train="a <unk> b\n" * 20, valid="a b c\n" * 9, test="a b\n")
    (note,) = load("text", tmp_path).notes
    assert note.startswith("25% of the valid text is words that the vocabulary does not have, all of them <unk>")
    write(tmp_path, train="a <unk> b\n" * 20, valid="a b <unk>\n" * 9, test="c a\n" + "a a b\n" * 9)
    assert load("text", tmp_path).notes == ()


def test_a_home_directory_is_needed_for_the_cache_alone(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ValueError, match=r"no home directory .* set XDG_CACHE_HOME"):
        cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_dir() == Path("/elsewhere/bwds")


@pytest.mark.parametrize("unreadable", ["train.txt", "."])
def test_text_that_may_not_be_read_is_named(unreadable):
    user = os.geteuid()
    # Not in tmp_path, where none but its owner may look; and root may read all.
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        folder = write(Path(scratch) / "text")
        (folder / unreadable).chmod(0)
        os.seteuid(65534 if user == 0 else user)
        try:
            with pytest.raises(PermissionError, match=re.escape(str(folder))):
                load("text", folder)
        finally:
            os.seteuid(user)
            (folder / unreadable).chmod(0o755)


# --- our datasets


def as_download(monkeypatch, name: str, folder: Path) -> None:
    """Lets the files in the folder be what comes from the network, too."""
    as_dataset(monkeypatch, name, folder)
    monkeypatch.setattr(builders.BUILDERS[name], "url_infos", {})
    monkeypatch.setattr(builders.BUILDERS[name], "_download", lambda self, manager: text.find_files(folder))


@pytest.mark.parametrize("name", ["ptb", "wikitext2", "wikitext103"])
def test_a_dataset_keeps_lines_and_order(tmp_path, monkeypatch, capsys, cache, name):
    # More than two examples of 1000 lines; the number of words shows lines that are lost, swapped or joined.
    train = "".join(" w" * (i % 7) + f" n{i % 40}\n" if i % 5 else "\n" for i in range(2345))
    folder = write(tmp_path / "files", train=train, valid="w\n\n", test="\nw")
    plain = load("text", folder)
    as_download(monkeypatch, name, folder)
    for corpus in (load(name, folder), load(name)):
        assert corpus.vocabulary == plain.vocabulary
        for split in SPLITS:
            np.testing.assert_array_equal(getattr(corpus, split), getattr(plain, split))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [f"Preparing the dataset {name} in {cache / 'tfds' / name / '1.0.0'} ..."]
    # Prepared: the network is not needed any more, and nothing is said.
    monkeypatch.setattr(builders.BUILDERS[name], "_download", lambda *_: pytest.fail("it was downloaded again"))
    np.testing.assert_array_equal(load(name).train, plain.train)
    output = capsys.readouterr()
    assert output.out + output.err == ""
    assert "tensorflow" not in sys.modules


def test_other_files_are_refused(tmp_path):
    wrong = write(tmp_path / "wrong", "ptb.{}.txt", test="z\n")
    with pytest.raises(
        ValueError, match=r"ptb.train.txt is not the train file of Penn Treebank: its sha256 is .*data.dataset='text'"
    ):
        load("ptb", wrong)
    (wrong / "ptb.train.txt").write_bytes(NO_TEXT["Git LFS"])
    with pytest.raises(ValueError, match=r"ptb.train.txt is a pointer of Git LFS"):
        load("ptb", wrong)


def test_local_files_need_no_tensorflow_datasets(tmp_path, monkeypatch, cache):
    as_dataset(monkeypatch, "ptb", write(tmp_path / "files"))
    monkeypatch.delitem(sys.modules, "bwds.data.tfds")
    monkeypatch.delattr("bwds.data.tfds")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert words(load("ptb", tmp_path / "files"), "train") == ["a", "b", "<eos>"]
    assert not cache.exists()  # they are read where they are
    with pytest.raises(ValueError, match=r"'ptb' is downloaded by .* 'tensorflow_datasets' is not installed: pip "):
        load("ptb")


def test_a_split_that_is_evaluated_needs_its_own_file_alone(tmp_path, monkeypatch):
    files = write(tmp_path / "files")
    as_dataset(monkeypatch, "ptb", files)
    whole = load("ptb", files)
    next(files.glob("*train*")).unlink()
    config = DataConfig(dataset="ptb", directory=str(files))
    np.testing.assert_array_equal(load_split(config, "valid", whole.vocabulary)[0], whole.valid)
    next(files.glob("*test*")).write_text("another\n")
    with pytest.raises(ValueError, match=r"test.txt is not the test file of Penn Treebank"):
        load_split(config, "test", whole.vocabulary)


def test_tfds_data_dir_is_respected(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    as_download(monkeypatch, "ptb", write(tmp_path / "files"))
    load("ptb")
    assert (tmp_path / "elsewhere" / "ptb" / "1.0.0" / "dataset_info.json").is_file()
    assert not cache.exists()


def test_half_prepared_data_are_not_used(tmp_path, monkeypatch, cache):
    as_download(monkeypatch, "ptb", write(tmp_path / "files", train="a b\n" * 3000))
    whole = builders.Ptb._generate_examples

    def fail_later(self, path):
        yield next(whole(self, path))
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(builders.Ptb, "_generate_examples", fail_later)
        with pytest.raises(ValueError, match=r"'ptb' could not be prepared in .*: OSError: .*the disk is full"):
            load("ptb")
    assert len(load("ptb").train) == 9000


PREPARE = """
import sys, time
import pytest
from test_datasets import as_download, builders, load
from pathlib import Path

whole = builders.Ptb._generate_examples

def stop_at_the_last(self, path):
    if path.name == "test.txt":
        print("half written", file=sys.stderr, flush=True)
        time.sleep(60)
    yield from whole(self, path)

builders.Ptb._generate_examples = stop_at_the_last
as_download(pytest.MonkeyPatch(), "ptb", Path(sys.argv[1]))
load("ptb")
"""


def test_a_process_killed_while_it_prepares_data_costs_nothing(tmp_path, monkeypatch, cache):
    folder = write(tmp_path / "files", train="a b\n" * 3000)
    as_download(monkeypatch, "ptb", folder)
    command = [sys.executable, "-c", PREPARE, str(folder)]
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line == "half written\n" for line in process.stderr)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert any(path.is_file() for path in (cache / "tfds" / "ptb").glob("incomplete*/ptb-train*"))
    assert len(load("ptb").train) == 9000


def test_another_process_may_prepare_the_same_data_first(tmp_path, monkeypatch):
    as_download(monkeypatch, "ptb", write(tmp_path / "files", train="a b\n" * 3000))
    whole = builders.Ptb._generate_examples

    def overtaken(self, path):
        with monkeypatch.context() as patch:
            patch.setattr(builders.Ptb, "_generate_examples", whole)
            load("ptb")
        yield from whole(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(builders.Ptb, "_generate_examples", overtaken)
        assert len(load("ptb").train) == 9000


def test_damaged_prepared_data_are_an_error_that_names_the_folder(tmp_path, monkeypatch, cache):
    as_download(monkeypatch, "ptb", write(tmp_path / "files", train="a b c\n" * 3000))
    load("ptb")
    (record,) = (cache / "tfds" / "ptb" / "1.0.0").glob("*train*")
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"'ptb' in {re.escape(str(record.parent))} cannot be read: .*Delete that"):
        load("ptb")


@pytest.mark.parametrize("name", ["ptb", "wikitext2", "wikitext103"])
def test_no_network_is_an_error_that_names_the_directory_option(monkeypatch, name):
    monkeypatch.setattr(tfds_source, "_answers", lambda url: False)
    with pytest.raises(
        ValueError,
        match=rf"'{name}' could not be prepared .* can be reached.* data.dataset='{name}' and data.directory=DIR",
    ):
        load(name)


def test_an_address_that_does_not_answer():
    assert not tfds_source._answers("http://127.0.0.1:9/file")


@pytest.mark.skipif(not _PTB.is_dir(), reason=f"no Penn Treebank in {_PTB}; set BWDS_PTB_DIRECTORY")
def test_penn_treebank():
    corpus = load("ptb", _PTB)
    assert [len(ids) for ids in corpus[2:5]] == [929_589, 73_760, 82_430]
    assert len(corpus.vocabulary) == 10_000
    assert corpus.vocabulary.words[:4] == ("the", "<unk>", "<eos>", "N")
    assert words(corpus, "valid")[:5] == ["consumers", "may", "want", "to", "move"]
    plain = load("text", _PTB)
    assert plain.vocabulary == corpus.vocabulary
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(corpus, split), getattr(plain, split))


# --- any dataset of TFDS


class _Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = ("text",)
    SPLITS = ("train", "validation", "test")

    def _info(self):
        features = {name: tfds.features.Text() for name in self.FEATURES} | {"label": np.int64}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for i in range(100):
            yield i, {name: f"{name} {split} <unk>\nline{i % 10}" for name in self.FEATURES} | {"label": i}


class BwdsTiny(_Tiny):
    pass


class BwdsTinyDocument(_Tiny):
    FEATURES = ("document",)


class BwdsTinyTwoTexts(_Tiny):
    FEATURES = ("question", "answer")


class BwdsTinyNoTrain(_Tiny):
    SPLITS = ("test",)


class BwdsTinyTrainOnly(_Tiny):
    SPLITS = ("train",)


class BwdsTinyNoValidation(_Tiny):
    SPLITS = ("train", "test")


def test_tfds_lines_and_splits():
    corpus = load("tfds:bwds_tiny")
    assert words(corpus, "train")[:8] == ["text", "train", "<unk>", "<eos>", "line0", "<eos>", "text", "train"]
    assert [len(ids) for ids in corpus[2:5]] == [600, 600, 600]
    assert words(corpus, "valid")[:3] == ["text", "<unk>", "<unk>"]
    assert "tensorflow" not in sys.modules


def test_tfds_only_text_feature_is_taken():
    assert words(load("tfds:bwds_tiny_document"), "test")[:4] == ["document", "<unk>", "<unk>", "<eos>"]


def test_tfds_missing_splits_are_cut_from_the_end_of_train():
    corpus = load("tfds:bwds_tiny_train_only")
    assert [len(ids) for ids in corpus[2:5]] == [540, 30, 30]
    assert words(corpus, "valid")[4::6] == [f"line{i}" for i in range(5)]  # examples 90 to 94
    assert words(corpus, "test")[4::6] == [f"line{i}" for i in range(5, 10)]  # examples 95 to 99
    corpus = load("tfds:bwds_tiny_no_validation")
    assert [len(ids) for ids in corpus[2:5]] == [570, 30, 600]
    assert words(corpus, "valid")[:2] == ["text", "train"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bwds_tiny_two_texts", r"has 2 text features \(question, answer\).*Its features are .*label"),
        ("bwds_tiny_no_train", "has no train split, only test"),
        ("nonesuch", "TensorFlow Datasets cannot open 'nonesuch'.*catalog.*data.dataset='text'"),
    ],
)
def test_tfds_errors(name, message):
    with pytest.raises(ValueError, match=message):
        load(f"tfds:{name}")


def test_data_module_does_not_import_tfds():
    code = "import sys, bwds.data; sys.exit('tensorflow_datasets' in sys.modules or 'tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
