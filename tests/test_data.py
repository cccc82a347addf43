"""Vocabulary, corpus and batches."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bwds.config import DataConfig
from bwds.data import Vocabulary, load_corpus, load_split
from bwds.data.batches import eval_batches, steps_per_epoch, train_batch

SIZES = {"batch_size": st.integers(1, 9), "sequence_length": st.integers(1, 8)}


def write(folder: Path, *, train="a b\n", valid="a\n", test="b\n") -> DataConfig:
    for split, text in {"train": train, "valid": valid, "test": test}.items():
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return DataConfig(dataset="text", directory=str(folder))


# --- vocabulary


def test_vocabulary_round_trip(tmp_path):
    vocabulary = Vocabulary(("the", "<eos>", "naïve", "<unk>", "=@-="))
    vocabulary.save(tmp_path / "vocabulary.txt")
    assert (tmp_path / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[2] == "naïve"
    assert Vocabulary.load(tmp_path / "vocabulary.txt") == vocabulary
    ids = vocabulary.encode(["the", "naïve", "zebra", "<eos>"])
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 2, 3, 1]
    assert vocabulary.decode(ids) == ["the", "naïve", "<unk>", "<eos>"]
    assert len(vocabulary) == 5
    assert vocabulary.eos_id == 1


@pytest.mark.parametrize("wrong", [-1, 2])
def test_vocabulary_refuses_an_id_that_it_does_not_have(wrong):
    with pytest.raises(ValueError, match=rf"no token with the id {wrong}; ids are from 0 to 1"):
        Vocabulary(("the", "<eos>")).decode([0, wrong])


def test_vocabulary_without_unk_names_the_unknown_word():
    with pytest.raises(ValueError, match=r"'zebra' is not in the vocabulary, which has no <unk>"):
        Vocabulary(("the", "<eos>")).encode(["the", "zebra"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no vocabulary at .*vocabulary.txt"),
        (b"", "vocabulary.txt: The vocabulary is empty"),
        (b"the\n<eos>\nthe\n", "'the' twice, as ids 0 and 2"),
        (b"the\n\n<eos>\n", "Line 2 of the vocabulary .* has 0 tokens"),
        (b"the\nnew york\n", "Line 2 of the vocabulary .* has 2 tokens"),
        (b"the\nna\xefve\n", "not UTF-8 text: byte 6, on line 2, is 0xef"),
    ],
)
def test_vocabulary_load_refuses_damaged_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocabulary.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Vocabulary.load(tmp_path / "vocabulary.txt")


# --- corpus


def test_corpus_ids_words_and_order(tmp_path):
    config = write(tmp_path, train="b a b\n\nc <unk> a b", valid="a zebra\n", test="c\n")
    corpus = load_corpus(config)
    # b: 3, <eos>: 3 (the blank line and the one without a newline count), a: 2, <unk> and c: 1; equals by alphabet
    assert corpus.vocabulary.words == ("<eos>", "b", "a", "<unk>", "c")
    assert corpus.vocabulary.decode(corpus.train) == ["b", "a", "b", "<eos>", "<eos>", "c", "<unk>", "a", "b", "<eos>"]
    assert corpus.vocabulary.decode(corpus.valid) == ["a", "<unk>", "<eos>"]
    assert corpus.vocabulary.decode(corpus.test) == ["c", "<eos>"]
    assert all(ids.dtype == np.int32 for ids in corpus[2:5])
    assert corpus.name == "text"


def test_a_split_is_read_alone_in_the_words_of_a_run(tmp_path):
    """Whatever lies beside it: no file of another split is opened."""
    config = write(tmp_path, train="b a b\n\nc <unk> a b", valid="a zebra\n", test="c zebra <unk> d\n")
    corpus = load_corpus(config)
    (tmp_path / "train.txt").write_text("zebra d\n")
    (tmp_path / "valid.txt").unlink()
    ids, unknown = load_split(config, "test", corpus.vocabulary)
    np.testing.assert_array_equal(ids, corpus.test)
    assert unknown == 2
    with pytest.raises(ValueError, match=r"'zebra' of .*test.txt .*no <unk>"):
        load_split(config, "test", Vocabulary(("<eos>", "c")))
    with pytest.raises(ValueError, match="No valid split in"):
        load_split(config, "valid", corpus.vocabulary)


def test_an_unknown_word_without_unk_makes_unk_of_what_occurs_once(tmp_path):
    config = write(tmp_path, train="a b b a c\n", test="b\nb zebra\n")
    corpus = load_corpus(config)
    assert corpus.vocabulary.words == ("a", "b", "<eos>", "<unk>")
    assert corpus.vocabulary.decode(corpus.train) == ["a", "b", "b", "a", "<unk>", "<eos>"]
    assert corpus.vocabulary.decode(corpus.test) == ["b", "<eos>", "b", "<unk>", "<eos>"]
    (note,) = corpus.notes
    assert note.startswith("The vocabulary is the 2 most frequent of 3 words; the others, 16.7% of the training text")
    assert "data.vocab_limit" in note
    limited = load_corpus(DataConfig(dataset="text", directory=config.directory, vocab_limit=100))
    assert limited.vocabulary.words == ("a", "b", "<eos>", "c", "<unk>")
    assert limited.notes == ()


def test_where_all_is_known_nothing_becomes_unk(tmp_path):
    corpus = load_corpus(write(tmp_path, train="a b c\n", valid="a\n", test="c b\n"))
    assert corpus.vocabulary.words == ("<eos>", "a", "b", "c")
    assert corpus.notes == ()


def test_a_text_of_very_many_words_gets_a_limit(tmp_path):
    """All words occur twice, so only their number asks for a limit. A text with an <unk> of its own keeps all."""
    words = [f"w{i:05}" for i in range(10_001)]
    text = " ".join(words + words)
    corpus = load_corpus(write(tmp_path, train=text, valid="w00000 w09997\n", test="w09998 w10000\n"))
    assert len(corpus.vocabulary) == 10_000
    assert corpus.vocabulary.decode(corpus.valid) == ["w00000", "w09997", "<eos>"]
    assert corpus.vocabulary.decode(corpus.test) == ["<unk>", "<unk>", "<eos>"]
    assert "the 9,998 most frequent of 10,001 words" in corpus.notes[0]
    write(tmp_path, train=f"{text} <unk>", valid="w00000\n", test="w00001 w00002 w00003 w00004 other\n")
    own = load_corpus(DataConfig(dataset="text", directory=str(tmp_path)))
    assert len(own.vocabulary) == 10_003
    assert own.notes == ()


def test_vocab_limit_keeps_the_most_frequent_words(tmp_path):
    write(tmp_path, train="a a a b b c c d\n", valid="a d\n", test="c z\n")
    corpus = load_corpus(DataConfig(dataset="text", directory=str(tmp_path), vocab_limit=4))
    # c and d make three times <unk>; b comes before c in the alphabet, so it stays.
    assert corpus.vocabulary.words == ("<unk>", "a", "b", "<eos>")
    assert corpus.vocabulary.decode(corpus.train) == ["a", "a", "a", "b", "b", "<unk>", "<unk>", "<unk>", "<eos>"]
    assert corpus.vocabulary.decode(corpus.valid) == ["a", "<unk>", "<eos>"]


@given(
    lines=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), min_size=1, max_size=20), limit=st.integers(3, 9)
)
def test_vocab_limit_bounds_the_vocabulary_and_keeps_the_length(tmp_path_factory, lines, limit):
    lines.append(["a", "b"])  # two words at least
    folder = tmp_path_factory.mktemp("text")
    write(folder, train="".join(" ".join(line) + "\n" for line in lines))
    corpus = load_corpus(DataConfig(dataset="text", directory=str(folder), vocab_limit=limit))
    words = [word for line in lines for word in [*line, "<eos>"]]
    assert len(corpus.vocabulary) <= limit
    assert {"<unk>", "<eos>"} <= set(corpus.vocabulary.words)
    decoded = corpus.vocabulary.decode(corpus.train)
    assert all(new in (old, "<unk>") for new, old in zip(decoded, words, strict=True))
    kept = [words.count(word) for word in set(decoded) - {"<unk>", "<eos>"}]
    dropped = [words.count(word) for word in set(words) - set(decoded)]
    assert not kept or not dropped or min(kept) >= max(dropped)


@pytest.mark.parametrize(
    ("dataset", "directory", "message"),
    [
        ("penn", None, "Unknown dataset 'penn'; known are pydoc, ptb, wikitext2, wikitext103, text and tfds:NAME"),
        ("text", None, "'text' needs data.directory"),
        ("text", "/nonesuch", "The data directory '/nonesuch' does not exist"),
        ("text", "~nobody-has-this-name/text", "there is no user 'nobody-has-this-name'"),
        ("pydoc", "/tmp", "'pydoc' reads no files of yours, .* use data.dataset='text'"),
        ("tfds:imdb", "/tmp", "'tfds:imdb' reads no files of yours"),
    ],
)
def test_wrong_names_and_directories(dataset, directory, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(DataConfig(dataset=dataset, directory=directory))


# --- training batches


@given(n=st.integers(2, 400), **SIZES)
def test_training_windows_are_consecutive_and_columns_contiguous(n, batch_size, sequence_length):
    ids = np.random.default_rng(n).integers(0, 1000, n, dtype=np.int32)
    sizes = {"batch_size": batch_size, "sequence_length": sequence_length}
    if n < batch_size * sequence_length + 1:
        with pytest.raises(ValueError, match=f"has {n} tokens, fewer than one batch of {batch_size} x"):
            train_batch(ids, 0, **sizes)
        return
    steps = steps_per_epoch(ids, **sizes)
    batches = [train_batch(ids, step, **sizes) for step in range(steps)]
    assert [batch.new_epoch for batch in batches] == [True] + [False] * (steps - 1)
    inputs = np.concatenate([batch.inputs for batch in batches], axis=1)
    targets = np.concatenate([batch.targets for batch in batches], axis=1)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.shape == targets.shape == (batch_size, steps * sequence_length)
    column = (n - 1) // batch_size
    assert 0 <= column - inputs.shape[1] < sequence_length  # less than a window is left out
    for b in range(batch_size):
        begin = b * column
        np.testing.assert_array_equal(inputs[b], ids[begin : begin + inputs.shape[1]])
        np.testing.assert_array_equal(targets[b], ids[begin + 1 : begin + 1 + inputs.shape[1]])


@given(step=st.integers(0, 10**6))
def test_a_training_batch_depends_on_the_step_alone(step):
    ids = np.arange(1000, dtype=np.int32)
    sizes = {"batch_size": 7, "sequence_length": 5}
    steps = steps_per_epoch(ids, **sizes)
    assert steps == 28
    one, again = train_batch(ids, step, **sizes), train_batch(ids, step % steps, **sizes)
    np.testing.assert_array_equal(one.inputs, again.inputs)
    np.testing.assert_array_equal(one.targets, again.targets)
    assert one.new_epoch == again.new_epoch == (step % steps == 0)


def test_steps_per_epoch_of_penn_treebank():
    assert steps_per_epoch(np.zeros(929_589, np.int32), batch_size=128, sequence_length=35) == 207


# --- evaluation batches


@given(n=st.integers(1, 300), **SIZES)
def test_every_token_is_a_target_once_whatever_the_batch(n, batch_size, sequence_length):
    eos = 7
    ids = np.random.default_rng(n).integers(0, 1000, n, dtype=np.int32)
    batches = list(eval_batches(ids, batch_size=batch_size, sequence_length=sequence_length, eos_id=eos))
    shapes = {array.shape for batch in batches for array in batch}
    assert len(shapes) == 1  # one compilation
    columns, length = shapes.pop()
    assert 1 <= columns <= batch_size
    assert length == sequence_length
    inputs, targets, weights = (np.concatenate(arrays, axis=1) for arrays in zip(*batches, strict=True))
    assert (inputs.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
    assert set(np.unique(weights)) <= {0.0, 1.0}
    # Column after column, the weighted targets are the text, and the inputs the text one place later.
    np.testing.assert_array_equal(targets[weights > 0], ids)
    np.testing.assert_array_equal(inputs[weights > 0], np.concatenate([[eos], ids[:-1]]))
    assert (weights.sum(axis=1) > 0).all()  # no column is empty
    # The first column starts with the first token; every other reads the window before its own tokens.
    begin = 0
    for b in range(columns):
        counted = np.flatnonzero(weights[b])
        own = len(counted)
        early = 0 if b == 0 else sequence_length
        np.testing.assert_array_equal(counted, np.arange(early, early + own))
        np.testing.assert_array_equal(targets[b, : early + own], ids[begin - early : begin + own])
        np.testing.assert_array_equal(inputs[b, 1 : early + own], targets[b, : early + own - 1])
        if b < columns - 1:
            assert early + own == targets.shape[1]  # padding in the last column only
        begin += own


def test_no_window_of_evaluation_is_wasted():
    # 1 + 4 * 25 windows of 10 tokens in 4 columns: each reads 25; before that, the first reads one more alone.
    batches = list(eval_batches(np.zeros(1010, np.int32), batch_size=4, sequence_length=10, eos_id=0))
    assert len(batches) == 26
    assert sum(batch.weights.sum() for batch in batches) == 1010


def test_evaluation_needs_tokens():
    with pytest.raises(ValueError, match="no tokens to evaluate"):
        next(eval_batches(np.zeros(0, np.int32), batch_size=4, sequence_length=10, eos_id=0))
