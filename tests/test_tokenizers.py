"""Words, characters and subwords: text to tokens and back, spelled so that a vocabulary's lines tell all."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bwds.config import DataConfig
from bwds.data import Vocabulary, load_corpus, load_split
from bwds.tokens import (
    Characters,
    Subwords,
    learn_subwords,
    lines_of,
    make_tokenizer,
    merges,
    spelled,
    unspelled,
    without_line_end,
)

ROOT = Path(__file__).parents[1]
# Latin, Greek, Han, Arabic, combining marks, emoji of several code points, every blank, and what looks like a token.
SCRIPTS = (
    "naïve cafe\u0301 καλημέρα 你好世界 مرحبا 👩‍👩‍👧 \t\r\v\f\x1c\x85\u00a0\u2028\u3000\ufeff\0 <eos> <unk> \\u20 \\n"
)
TEXT = [f"def f{i}(x):\n    return x + {i}  # the sum of x and {i}\n" for i in range(40)]
LINES = [line for part in TEXT for line in part.split("\n")[:-1]]


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return Subwords(learn_subwords(LINES, 320))


@pytest.mark.parametrize("tokens", ["word", "character", "subword"])
def test_a_token_is_shown_as_its_text(tokens):
    words = {
        "word": ("<eos>", "<unk>", "the"),
        "character": ("<eos>", "<unk>", "\\u20", "ж"),
        "subword": learn_subwords(["это это это"], 270),
    }[tokens]
    shown = {
        "word": ["<eos>", "<unk>", "the"],
        "character": ["<eos>", "<unk>", "␣", "ж"],
        "subword": ["<eos>", "это", "␣это"],
    }[tokens]
    vocabulary = Vocabulary(words, tokens)
    ids = vocabulary.prompt("это это") if tokens == "subword" else range(len(words))
    assert vocabulary.shown(ids) == shown


# --- round trips


@given(text=st.text())
@example(text=SCRIPTS)
@example(text="\n\n a\n")
@example(text="")
def test_a_text_comes_back_from_its_characters(text):
    tokens = Characters().split(text)
    assert len(tokens) == len(text)
    assert Characters().join(tokens) == text


@given(text=st.text())
@example(text=SCRIPTS)
@example(text="\n\n a\n")
@example(text="")
@example(text="a" * 10_000 + "\n" + "你" * 3000)
def test_a_text_comes_back_from_its_subwords(subwords, text):
    tokens = subwords.split(text)
    assert subwords.join(tokens) == text
    assert tokens.count("<eos>") == text.count("\n")


@given(text=st.text())
@example(text=SCRIPTS)
def test_a_spelling_is_a_line_of_a_vocabulary(tmp_path_factory, text):
    tokens = tuple(dict.fromkeys(spelled(character) for character in text))
    assert [unspelled(token) for token in tokens] == list(dict.fromkeys(text))
    if tokens:
        path = tmp_path_factory.mktemp("spelled") / "vocabulary.txt"
        Vocabulary(tokens).save(path)
        assert Vocabulary.load(path).words == tokens


@pytest.mark.parametrize("token", ["", "ab", "\\u", "\\u110000", "\\uXY", "<eos>"])
def test_what_is_no_spelling_is_refused(token):
    with pytest.raises(ValueError, match="is no character; these are the tokens of another run"):
        unspelled(token)


def test_words_lose_white_space_alone():
    words = make_tokenizer("word", ("a", "<eos>"))
    assert words.split(" a  b\n\nc\td") == ["a", "b", "<eos>", "<eos>", "c", "d"]
    assert words.join(["a", "b", "<eos>", "<eos>", "c", "d<eos>"]) == "a b\n\nc d<eos>"


def test_lines_are_what_eos_ends():
    assert list(lines_of([])) == [[]]
    assert list(lines_of(["a", "<eos>", "<eos>", "b"])) == [["a"], [], ["b"]]
    assert [without_line_end(line) for line in ("a\n", "a\r\n", "a\r", "a", "\r\n", "a\n\n")] == [
        *("a", "a", "a", "a", "", "a\n")
    ]


def test_what_is_unknown_is_shown_as_the_character_for_it():
    assert Characters().join(["a", "<unk>", "<eos>"]) == "a\ufffd\n"


def test_bytes_that_are_no_character_are_shown_as_the_character_for_them(subwords):
    tokens = subwords.split("你")
    assert len(tokens) == 3
    assert subwords.join(tokens[:2]) == "\ufffd"


# --- subwords


def reference(word: str, place: dict[str, int]) -> list[str]:
    """Byte pair encoding of one piece of text by its definition: the pair of the earliest token is joined first."""
    parts = list(word)
    while True:
        pairs = [(place[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in place]
        if not pairs:
            return parts
        first = min(pairs)[1]
        parts[first : first + 2] = [parts[first] + parts[first + 1]]


@given(word=st.text(st.sampled_from("fxreturndef0123456789"), min_size=1, max_size=12))
def test_subwords_are_those_of_the_definition(subwords, word):
    """A piece of letters, or of digits, is never cut before it is encoded; others are cut where they change."""
    words = list(learn_subwords(LINES, 320))
    place = {token: i for i, token in enumerate(words)}
    piece = "".join(c for c in word if c.isalpha()) or word
    assert subwords.split(piece) == reference(piece, place)


def test_a_vocabulary_is_eos_the_bytes_and_pieces_of_the_text():
    vocabulary = Vocabulary(learn_subwords(LINES, 320))
    assert len(vocabulary) == 320
    assert vocabulary.words[0] == "<eos>"
    assert {len(word) for word in vocabulary.words[1:257]} == {1}
    pieces = vocabulary.words[257:]
    assert {"\u0120return", "\u0120sum"} & set(pieces)
    assert all(piece.replace("\u0120", " ") in "\n".join(LINES) for piece in pieces)
    # Each token is made of two earlier ones.
    assert {a + b for a, b in merges(vocabulary.words)} == set(pieces)
    # Nothing else occurs twice.
    assert len(learn_subwords(["ab ab"], 1000)) < 265
    # The library would take 70 GB of memory, and end the process where there are none.
    assert learn_subwords(["ab ab"], 10**9) == learn_subwords(["ab ab"], 1000)


def test_a_longer_vocabulary_begins_with_the_shorter_one_and_needs_fewer_tokens():
    small, large = learn_subwords(LINES, 300), learn_subwords(LINES, 340)
    assert large[:300] == small
    text = "\n".join(LINES)
    assert len(Subwords(large).split(text)) < len(Subwords(small).split(text)) < len(text)


def test_the_same_text_gives_the_same_vocabulary_in_another_process():
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests'); from test_tokenizers import LINES; "
        "from bwds.tokens import learn_subwords; "
        "print(hashlib.sha256(repr(learn_subwords(LINES, 320)).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    words = learn_subwords(LINES, 320)
    assert output.stdout.strip() == hashlib.sha256(repr(words).encode()).hexdigest()


def test_the_vocabulary_alone_tells_the_tokens(subwords, tmp_path):
    """Read back from its file it encodes alike: nothing else is kept with a run."""
    Vocabulary(learn_subwords(LINES, 320)).save(tmp_path / "vocabulary.txt")
    again = Subwords(Vocabulary.load(tmp_path / "vocabulary.txt").words)
    for text in (*LINES, SCRIPTS):
        assert again.split(text) == subwords.split(text)


def test_ids_are_places_in_the_vocabulary(subwords):
    vocabulary = Vocabulary(learn_subwords(LINES, 320))
    lines = [*LINES, "", SCRIPTS] * 60  # more than one batch
    found = list(subwords.ids(lines))
    assert len(found) == len(lines)
    for line, ids in zip(lines[-45:], found[-45:], strict=True):
        assert vocabulary.decode(ids) == subwords.split(line)


def test_another_vocabulary_is_refused():
    for words, missing in ((("a", "b", "<eos>"), "!"), (learn_subwords(LINES, 300)[1:], "<eos>")):
        with pytest.raises(ValueError, match=f"has no '{missing}'.*these are the tokens of another run"):
            Subwords(words)


# --- corpora


def write(folder: Path, *, train: str, valid: str = "a\n", test: str = "b\n") -> Path:
    for split, text in {"train": train, "valid": valid, "test": test}.items():
        (folder / f"{split}.txt").write_bytes(text.encode())
    return folder


def load(folder: Path, tokens: str, **options):
    return load_corpus(DataConfig(dataset="text", directory=str(folder), tokens=tokens, **options))


def text_of(corpus, split: str, tokens: str) -> str:
    assert corpus.vocabulary.tokens == tokens
    return corpus.vocabulary.text(getattr(corpus, split))


@pytest.mark.parametrize("tokens", ["character", "subword"])
def test_a_corpus_decodes_to_its_text(tmp_path, tokens):
    train = "".join(TEXT) + "  two  blanks\t<eos> <unk> \\ 你好 مرحبا 👩‍👩‍👧\n\n"
    valid, test = "return 1\n", "  return  x"
    corpus = load(write(tmp_path, train=train.replace("\n", "\r\n"), valid=valid, test=test), tokens)
    assert text_of(corpus, "train", tokens) == train
    assert text_of(corpus, "valid", tokens) == valid
    # The last line has its <eos> too.
    assert text_of(corpus, "test", tokens) == test + "\n"
    assert [ids.dtype for ids in corpus[2:5]] == [np.int32] * 3


def test_characters_are_in_order_of_frequency_and_spelled(tmp_path):
    corpus = load(write(tmp_path, train="bb a\nb a\n", valid="b\n", test="a b\n"), "character")
    assert corpus.vocabulary.words == ("b", "\\u20", "<eos>", "a")
    assert corpus.vocabulary.decode(corpus.train) == ["b", "b", "\\u20", "a", "<eos>", "b", "\\u20", "a", "<eos>"]


def test_a_character_that_training_has_not_makes_unk_of_what_occurs_once(tmp_path):
    corpus = load(write(tmp_path, train="aabbé\n", valid="aß\n", test="b\n"), "character")
    assert set(corpus.vocabulary.words) == {"a", "b", "<eos>", "<unk>"}
    assert text_of(corpus, "train", "character") == "aabb\ufffd\n"
    assert text_of(corpus, "valid", "character") == "a\ufffd\n"
    assert "the 2 most frequent of 3 characters; the others, 16.7%" in corpus.notes[0]


def test_the_limit_is_the_size_of_the_vocabulary(tmp_path, unchecked):
    write(tmp_path, train="".join(TEXT), valid="f1\n", test="f2 é\n")
    assert len(load(tmp_path, "character", vocab_limit=8).vocabulary) == 8
    assert len(load(tmp_path, "subword", vocab_limit=310).vocabulary) == 310
    with pytest.raises(ValueError, match="vocab_limit is 299; a vocabulary of subwords takes at least 300"):
        DataConfig(tokens="subword", vocab_limit=299)
    with pytest.raises(ValueError, match="tokens is 'letter'; it must be one of word, character, subword"):
        DataConfig(tokens="letter")


@pytest.mark.parametrize("tokens", ["word", "character", "subword"])
def test_a_split_is_read_alone_in_the_tokens_of_a_run(tmp_path, tokens):
    write(tmp_path, train="".join(TEXT), valid="f1 sum\n", test="the sum é of\n\n")
    corpus = load(tmp_path, tokens)
    corpus.vocabulary.save(tmp_path / "vocabulary.txt")
    (tmp_path / "train.txt").unlink()
    config = DataConfig(dataset="text", directory=str(tmp_path), tokens=tokens)
    ids, unknown = load_split(config, "test", Vocabulary.load(tmp_path / "vocabulary.txt"))
    np.testing.assert_array_equal(ids, corpus.test)
    assert unknown == {"word": 1, "character": 1, "subword": 0}[tokens]


@pytest.mark.parametrize("tokens", ["character", "subword"])
def test_a_text_without_anything_in_it_is_refused(tmp_path, tokens):
    for blank, message in (("", "train.txt is empty"), ("\n\r\n\n", "train.txt has no|train.txt has only")):
        with pytest.raises(ValueError, match=message):
            load(write(tmp_path, train=blank), tokens)


def test_the_tokens_of_another_run_are_refused(tmp_path):
    write(tmp_path, train="".join(TEXT), valid="f1\n", test="f2\n")
    words = load(tmp_path, "word").vocabulary
    for tokens in ("character", "subword"):
        config = DataConfig(dataset="text", directory=str(tmp_path), tokens=tokens)
        with pytest.raises(ValueError, match="these are the tokens of another run"):
            load_split(config, "test", words)
