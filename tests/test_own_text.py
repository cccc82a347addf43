"""A text of one's own in one step: a file or a folder of any text files, cut in three, trained on and written."""

import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
from called import call
from hypothesis import example, given
from hypothesis import strategies as st

import bwds
from bwds.cli.generate import _as_they_come
from bwds.config import DataConfig
from bwds.data import Vocabulary, load_corpus, text
from bwds.data.sources import SPLITS
from bwds.tokens import learn_subwords, make_tokenizer
from bwds.trained_model import _pieces

LINES = [f"line {i} of the text: {'word ' * (i % 5)}end\n" for i in range(200)]


def pieces(path: Path, **options) -> list[str]:
    """The text of each split."""
    found = text.splits(path, **options)
    assert found.keys() == set(SPLITS)
    return ["".join(found[split].lines) for split in SPLITS]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- where a text is cut


@given(
    lines=st.lists(st.text(st.sampled_from("ab 你é\t\r"), max_size=30), min_size=1, max_size=40),
    held_out=st.sampled_from([0.01, 0.05, 0.2, 0.4]),
    ended=st.booleans(),
)
@example(lines=["你" * 100], held_out=0.05, ended=False)
@example(lines=["a你"], held_out=0.2, ended=False)
def test_the_three_splits_are_the_text_in_order(tmp_path_factory, lines, held_out, ended):
    """Whole characters, nothing lost and nothing twice; or there is too little text for three."""
    path = tmp_path_factory.mktemp("cut") / "text.dat"
    whole = "\n".join(lines) + "\n" * ended
    write(path, whole)
    try:
        found = pieces(path, held_out=held_out)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert re.search("There is no text for the (train|valid|test) split", refusal)
        assert len(whole.encode()) * held_out < 15
        return
    assert "".join(found) == whole
    share = len(whole.encode()) * held_out
    for part in found[1:]:
        assert share / 2 - 5 <= len(part.encode()) <= 1.5 * share + 5


def test_a_border_is_the_end_of_a_line(tmp_path):
    path = write(tmp_path / "own.log", "".join(LINES))
    train, valid, test = pieces(path)
    assert all(part.endswith("end\n") and part.startswith("line ") for part in (train, valid, test))
    total = len("".join(LINES))
    for part, share in ((train, 0.9), (valid, 0.05), (test, 0.05)):
        assert abs(len(part) / total - share) < 0.01
    assert pieces(path) == [train, valid, test]
    # A line that begins just there is not passed over.
    path.write_bytes(b"123456789\n" * 100)
    assert [len(part) for part in pieces(path)] == [900, 50, 50]
    assert [len(part) for part in pieces(path, held_out=0.1)] == [800, 100, 100]


def test_a_line_of_megabytes_is_cut_at_a_blank_or_else_between_characters(tmp_path):
    words = " ".join(f"w{i}" for i in range(200_000))
    found = pieces(write(tmp_path / "one_line.txt", words))
    assert "".join(found) == words
    assert [part.split() for part in found] == [
        [f"w{i}" for i in range(*span)]
        for span in ((0, int(found[1].split()[0][1:])), (int(found[1].split()[0][1:]), int(found[2].split()[0][1:])),
                     (int(found[2].split()[0][1:]), 200_000))
    ]  # fmt: skip
    dense = "字" * 100_000
    found = pieces(write(tmp_path / "no_blank.txt", dense))
    assert [len(part) for part in found] == [90_000, 5_000, 5_000]
    assert "".join(found) == dense


def test_the_files_of_a_folder_are_one_text_in_the_order_of_their_names(tmp_path):
    for name, part in (("b/1.md", LINES[50:100]), ("a.txt", LINES[:50]), ("c.RST", LINES[100:200])):
        write(tmp_path / "own" / name, "".join(part))
    for name in ("picture.png", ".hidden.txt", ".git/notes.txt", "table.csv"):
        write(tmp_path / "own" / name, b"\x89PNG no part of it")
    found = text.splits(tmp_path / "own")
    assert "".join("".join(found[split].lines) for split in SPLITS) == "".join(LINES)
    size = len("".join(LINES))
    assert f"{tmp_path / 'own'}, 3 text files by name, {size:,} bytes: the first 9" in found["train"].note
    assert re.search(r"for training, the next 5.\d% for validation, the last 4.\d% for test.$", found["train"].note)


def test_a_file_that_ends_without_a_newline_does_not_join_the_next(tmp_path):
    write(tmp_path / "own/1.txt", "a b " * 50 + "end")
    write(tmp_path / "own/2.txt", "\ufeffbegin" + " c d" * 50)
    corpus = load_corpus(DataConfig(dataset="text", directory=str(tmp_path / "own")))
    words = corpus.vocabulary.decode(np.concatenate([corpus.train, corpus.valid, corpus.test]))
    assert words[100:103] == ["end", "<eos>", "begin"] or words[100:103] == ["<unk>", "<eos>", "<unk>"]


@pytest.mark.parametrize("run", ["runs/quick", "."])
def test_a_run_in_the_folder_is_no_part_of_its_text(tmp_path, run):
    write(tmp_path / "text.txt", "".join(LINES))
    write(tmp_path / "other/vocabulary.txt", "a list of words\n" * 9)  # No run's, so it is text.
    before = pieces(tmp_path)
    for name in ("config.json", "vocabulary.txt", "checkpoints/last/2/sha256.txt", "checkpoints/2.later/x.txt"):
        write(tmp_path / run / name, "words of the run\n" * 99)
    assert pieces(tmp_path) == before


def test_named_splits_are_taken_as_they_are(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.txt", f"{split} a b\n")
    write(tmp_path / "more.txt", "not this\n")
    assert pieces(tmp_path) == [f"{split} a b\n" for split in SPLITS]
    (tmp_path / "valid.txt").unlink()
    with pytest.raises(ValueError, match="No valid split in"):
        pieces(tmp_path)


def test_one_split_is_read_without_the_others(tmp_path):
    path = write(tmp_path / "text", "".join(LINES))
    whole = "".join(text.splits(path)["test"].lines)
    damaged = bytearray(path.read_bytes())
    damaged[100] = 0xFF
    path.write_bytes(damaged)
    assert "".join(text.splits(path, ("test",))["test"].lines) == whole
    with pytest.raises(ValueError, match="is not UTF-8 text: byte 100, on line 4, is 0xff"):
        "".join(text.splits(path)["train"].lines)


def test_the_line_of_an_error_is_that_of_the_file(tmp_path):
    content = bytearray("".join(LINES).encode())
    content[-10] = 0xFF
    path = write(tmp_path / "text", bytes(content))
    with pytest.raises(ValueError, match=rf"byte {len(content) - 10}, on line 200, is 0xff"):
        "".join(text.splits(path)["test"].lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "There is no text for the train split"),
        (b"a b\n", "There is no text for the (train|valid|test) split"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "a pointer of Git LFS"),
        (b"%PDF-1.7\n" + b"x" * 1000, "is no text: .*Give its text as a plain text file"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 1000, "is no text: "),
        (b"a b\n" * 500 + b"\0\0\n" + b"a b\n" * 10, r"NUL character on line 501|NUL character on line \d+ after byte"),
        ("a b\n".encode("utf-16") * 500, "UTF-16"),
        (b"a \xe9 b\n" * 500, "is not UTF-8 text: byte 2, on line 1, is 0xe9. Convert the file to UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(tmp_path, content, message):
    for path in (write(tmp_path / "file.txt", content), write(tmp_path / "folder" / "file.md", content).parent):
        with pytest.raises(ValueError, match=message) as error:
            load_corpus(DataConfig(dataset="text", directory=str(path)))
        assert str(tmp_path) in str(error.value)


def test_a_folder_without_text_names_what_is_looked_for(tmp_path):
    write(tmp_path / "table.csv", "a,b\n")
    with pytest.raises(ValueError, match=r"no text in .*train.txt, nor .*\.txt, .*\.md.*data.directory=FILE"):
        pieces(tmp_path)


@pytest.mark.parametrize("held_out", [0.0, 0.5, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(held_out):
    with pytest.raises(ValueError, match=r"held_out is .*; it must be above 0 and less than 0.5"):
        DataConfig(held_out=held_out)


def test_line_ends_of_two_characters_are_no_tokens(tmp_path):
    windows = "\ufeff" + "".join(LINES).replace("\n", "\r\n")
    unix = "".join(LINES)
    for tokens in ("word", "character", "subword"):
        corpora = [
            load_corpus(DataConfig(dataset="text", directory=str(write(tmp_path / name, content)), tokens=tokens))
            for name, content in (("windows", windows), ("unix", unix))
        ]
        texts = ["".join(corpus.vocabulary.text(getattr(corpus, split)) for split in SPLITS) for corpus in corpora]
        assert texts[0].split("\n")[:150] == texts[1].split("\n")[:150]
        assert "\r" not in texts[0]
        assert "\ufeff" not in texts[0]


# --- from the text to a text


def story(seed: int = 0) -> str:
    """Sentences by a rule, in several scripts, with some line ends of two characters and one long line."""
    choose = random.Random(seed)
    names, verbs = ["Anna", "Боб", "小明", "Ζωή"], ["sees", "hört", "знает"]
    sentences = [f"{choose.choice(names)} {choose.choice(verbs)} {choose.choice(names)}." for _ in range(1500)]
    return "".join(f"{sentence}{choose.choice([' ', chr(10), chr(13) + chr(10)])}" for sentence in sentences)


@pytest.mark.parametrize(
    "tokens", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("word", "character")), "subword"]
)
def test_one_command_trains_and_another_writes(tmp_path, capsys, tokens):
    path = write(tmp_path / "story.txt", story())
    config = tiny_run.config(path, tokens=tokens, steps=6, eval_every=6, checkpoint_every=6, held_out=0.1)
    limit = ["--data.vocab-limit", "400"] if tokens == "subword" else []
    run = tmp_path / "run"
    code, _, err = call(capsys, "train", *tiny_run.arguments(config, run), *limit)
    assert code == 0, err
    assert f"The text is {path}, one file, {path.stat().st_size:,} bytes: the first 8" in err
    assert "10.0% for validation" in err
    saved = json.loads((run / "config.json").read_text())
    assert (saved["data"]["tokens"], saved["data"]["held_out"]) == (tokens, 0.1)
    # Resumed, it is the same run: the vocabulary is made again, and the digest of the text is the same.
    code, out, _ = call(capsys, "train", *tiny_run.arguments(config, run), *limit)
    assert (code, "The run is finished" in out) == (0, True)
    code, out, _ = call(capsys, "eval", "--workdir", str(run))
    assert (code, "test perplexity: " in out) == (0, True)
    texts = [call(capsys, "generate", str(run), "Anna sees", "--tokens", "30") for _ in range(2)]
    assert texts[0] == texts[1]
    code, out, err = texts[0]
    assert (code, err) == (0, "")
    assert out.startswith("Anna sees")
    code, _, err = call(capsys, "generate", str(run), "Anna sees Ω", "--tokens", "1")
    if tokens == "subword":
        assert (code, err) == (0, "")
    else:
        assert (code, "'Ω'" in err) in ((0, True), (2, True))


@pytest.mark.parametrize("tokens", ["character", pytest.param("subword", marks=pytest.mark.slow)])
def test_a_model_in_one_file_reads_and_writes_the_same_tokens(tmp_path, capsys, monkeypatch, tokens):
    path = write(tmp_path / "story.txt", story())
    limit = {"vocab_limit": 320} if tokens == "subword" else {}
    config = tiny_run.config(path, tokens=tokens, steps=2, eval_every=2, checkpoint_every=2, **limit)
    assert call(capsys, "train", *tiny_run.arguments(config, tmp_path / "run"))[0] == 0
    file = tmp_path / "model.safetensors"
    assert call(capsys, "eval", "--workdir", str(tmp_path / "run"), "--export", str(file))[0] == 0
    written = [call(capsys, "generate", str(place), "Anna", "--tokens", "40")[1] for place in (tmp_path / "run", file)]
    assert written[0] == written[1]
    loaded = bwds.load(file)
    assert loaded.vocabulary.tokens == tokens
    assert written[0].rstrip("\n") == loaded.generate("Anna", length=40).rstrip("\n")
    pieces = list(loaded.stream("Anna", length=40))
    assert "Anna" + "".join(pieces) == loaded.generate("Anna", length=40)
    assert len(pieces) > 10
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert call(capsys, "generate", str(file), "Anna", "--tokens", "40")[1] == written[0]


def test_what_a_prompt_has_that_the_model_does_not_know_is_shown_as_it_is_read():
    loaded = SimpleNamespace(vocabulary=Vocabulary(("a", "<unk>", "<eos>"), "character"))
    assert "".join(_as_they_come(loaded, "aΩ\n", iter("a"))) == "a\ufffd\na"
    loaded = SimpleNamespace(vocabulary=Vocabulary(("a", "<unk>", "<eos>")))
    assert "".join(_as_they_come(loaded, " a Ω\na", iter(["a", "<eos>", "a"]))) == "a <unk>\na a\na"


def test_a_piece_of_a_stream_has_whole_characters():
    vocabulary = Vocabulary(learn_subwords(["no pieces"], 257), "subword")
    ids = vocabulary.encode(vocabulary.split("aé你👩\n"))
    assert list(_pieces(vocabulary, ids)) == ["a", "é", "你", "👩", "\n"]
    # What is no character is shown when no more can make it one.
    assert list(_pieces(vocabulary, ids[1:2])) == ["\ufffd"]
    assert list(_pieces(vocabulary, [*ids[3:5], *ids[3:5]])) == ["\ufffd" * 2]


def test_another_text_or_cut_is_another_run(tmp_path, capsys):
    path = write(tmp_path / "story.txt", story())
    config = tiny_run.config(path, tokens="subword", steps=2, eval_every=2, checkpoint_every=2, vocab_limit=300)
    arguments = tiny_run.arguments(config, tmp_path / "run")
    assert call(capsys, "train", *arguments)[0] == 0
    code, _, err = call(capsys, "train", *arguments, "--data.held-out", "0.1")
    assert (code, "--data.held-out: 0.05 there, 0.1 now" in err) == (2, True)
    code, _, err = call(capsys, "train", *arguments, "--data.tokens", "character")
    assert (code, "data.tokens: 'subword' there, 'character' now" in err) == (2, True)
    write(path, story(seed=1))
    code, _, err = call(capsys, "train", *arguments)
    assert (code, "The text has changed since the run" in err) == (2, True)
    # The digest tells that it is not the run's text; it is read in the run's subwords all the same.
    code, out, err = call(capsys, "eval", "--workdir", str(tmp_path / "run"))
    assert (code, "test perplexity: " in out, "test text is not the run's" in err) == (0, True, True)


def test_a_vocabulary_that_was_changed_is_refused(tmp_path, capsys):
    path = write(tmp_path / "story.txt", story())
    config = tiny_run.config(path, tokens="subword", steps=2, eval_every=2, checkpoint_every=2, vocab_limit=300)
    assert call(capsys, "train", *tiny_run.arguments(config, tmp_path / "run"))[0] == 0
    vocabulary = tmp_path / "run/vocabulary.txt"
    lines = vocabulary.read_text().splitlines()
    lines[-1], lines[-2] = lines[-2:]
    vocabulary.write_text("\n".join(lines) + "\n")
    for arguments in (["eval", "--workdir", str(tmp_path / "run")], ["generate", str(tmp_path / "run"), "Anna"]):
        code, _, err = call(capsys, *arguments)
        assert (code, "is not that of its checkpoint" in err) == (2, True)


def test_subwords_need_their_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="'tokenizers', which is not installed: it comes with the extra 'files'"):
        make_tokenizer("subword", ["<eos>"])
