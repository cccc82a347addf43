"""Whatever is in the files and on the command line: it is used as it says, or refused in a sentence that names it.

These properties compile nothing. ``python -m tests.fuzz`` looks for inputs that break them, guided by coverage.
"""

import contextlib
import dataclasses
import io
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jaxtyping
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import eval as eval_script
from bwds import PRESETS, Config, cost, language_model
from bwds.cli import run
from bwds.cli import train as train_script
from bwds.config import DataConfig
from bwds.data import Vocabulary, load_corpus
from bwds.training.metrics import read_metrics
from bwds.training.optim import learning_rate_schedule, sparsity_at
from bwds.training.summary import read_summary
from bwds.training.workdir import read_config
from tests.strategies import INTEGERS, JSON, SCALARS, WORDS, Link, attempt, changed, damaged, entries, place, texts


@pytest.fixture(scope="module", autouse=True)
def no_annotation_checks() -> Iterator[None]:
    """Off, so that the library itself meets a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bwds-") as name:
        yield Path(name)


# --- text


def lines_of(content: bytes | None) -> list[list[str]] | None:
    """The lines of words in a file; None if it is no UTF-8, or not text."""
    try:
        text = content.decode("utf-8")
    except (UnicodeDecodeError, AttributeError):
        return None
    lines = [line.lstrip("\ufeff") for line in text.split("\n")]
    if any(character in line for line in lines for character in "\0\ufeff"):
        return None
    # What follows the last newline is a line if there is anything.
    ended = content.endswith(b"\n") or not content
    return [line.split() for line in (lines[:-1] if ended else lines)]


def seen(folder: Path, split: str) -> tuple[bytes | None, bool]:
    """The bytes that a reader of a split gets, and whether there is a file at all."""
    for name in (f"{split}.txt", f"{split}.tokens"):
        if (folder / name).is_file():
            return (folder / name).read_bytes(), True
    return None, False


def expected_corpus(folder: Path, limit: int | None) -> tuple[list[str], list[list[str]]] | None:
    """Vocabulary and words of the splits, written from the rules; None where they must be refused."""
    splits = []
    for split in ("train", "valid", "test"):
        content, there = seen(folder, split)
        lines = lines_of(content)
        if not there or not any(set(line) - {"<eos>"} for line in lines or []):
            return None
        splits.append([word for line in lines for word in [*line, *["<eos>"] * (line[-1:] != ["<eos>"])]])
    counts = Counter(splits[0])
    if len(counts.keys() - {"<unk>", "<eos>"}) < 2:
        return None
    if limit is not None:
        counts.setdefault("<unk>", 0)
        order = sorted(counts.keys() - {"<unk>", "<eos>"}, key=lambda word: (-counts[word], word))
        for word in order[limit - 2 :]:
            counts["<unk>"] += counts.pop(word)
    if "<unk>" not in counts and any(word not in counts for words in splits for word in words):
        once = {word for word, count in counts.items() if count == 1 and word != "<eos>"}
        # Where fewer than two would be left, all are kept.
        for word in once if len(counts.keys() - once - {"<eos>"}) > 1 else ():
            counts["<unk>"] += counts.pop(word)
        counts.setdefault("<unk>", 0)
    vocabulary = sorted(counts, key=lambda word: (-counts[word], word))
    return vocabulary, [[word if word in counts else "<unk>" for word in words] for words in splits]


@given(
    files=st.dictionaries(
        st.sampled_from([f"{split}.{ending}" for split in ("train", "valid", "test") for ending in ("txt", "tokens")]),
        entries(texts()),
        max_size=4,
    ),
    whole=st.booleans(),
    limit=st.none() | st.integers(3, 6),
)
@example(files={}, whole=False, limit=None)
@example(files={"train.txt": b"", "valid.txt": b"\n"}, whole=True, limit=None)
@example(files={"train.txt": b"a\n\xef\xbb\xbfb \xef\xbb\xbfb \xef\xbb\xbfb"}, whole=True, limit=3)
@example(files={"train.txt": b"a <eos>\n\xef\xbb\xbfb <eos>b\n<eos>\n"}, whole=True, limit=None)
@example(files={"train.txt": b"\x00" * 100, "valid.txt": Link("itself"), "valid.tokens": b"a"}, whole=True, limit=3)
def test_a_text_is_read_by_the_rules_or_refused(files, whole, limit):
    with folder() as directory:
        if whole:
            files = {"train.txt": b"a b\n", "valid.txt": b"a\n", "test.txt": b"a\n"} | files
        for name, entry in files.items():
            place(directory / name, entry)
        config = DataConfig(dataset="text", directory=str(directory), vocab_limit=limit)
        corpus, _ = attempt(lambda: load_corpus(config), str(directory))
        expected = expected_corpus(directory, limit)
        assert (corpus is None) == (expected is None)
        if corpus is None:
            return
        vocabulary, splits = expected
        assert list(corpus.vocabulary.words) == vocabulary
        assert [corpus.vocabulary.decode(ids) for ids in corpus[2:5]] == splits
        corpus.vocabulary.save(directory / "vocabulary")
        assert Vocabulary.load(directory / "vocabulary") == corpus.vocabulary


@given(
    content=texts()
    | st.lists(st.sampled_from(["a", "b", "<unk>", "<eos>"]), unique=True).map(
        lambda words: "".join(f"{word}\n" for word in words).encode()
    )
)
@example(content=b"\xef\xbb\xbfa\na\n")
@example(content=b"a\n<unk>\n")
def test_a_vocabulary_is_read_as_it_is_or_refused(content):
    with folder() as directory:
        path = directory / "vocabulary.txt"
        path.write_bytes(content)
        vocabulary, _ = attempt(lambda: Vocabulary.load(path), str(path))
        try:
            lines = content.decode("utf-8").removesuffix("\n").split("\n")
            words = [line.split() for line in lines] if content else [[]]
        except UnicodeDecodeError:
            words = [[]]
        right = all(len(line) == 1 for line in words) and len({line[0] for line in words}) == len(words)
        assert (vocabulary is not None) == right
        if vocabulary is None:
            return
        assert [[word] for word in vocabulary.words] == words
        eos, _ = attempt(lambda: vocabulary.eos_id, "<eos>")
        assert eos == (vocabulary.words.index("<eos>") if "<eos>" in vocabulary.words else None)


# --- configurations


def assert_usable(config: Config) -> None:
    """Types are those that are annotated, and all that is derived from the numbers can be computed."""
    for section in (config.model, config.data, config.optim, config.train):
        for name, annotation in get_type_hints(type(section)).items():
            value = getattr(section, name)
            assert any(fits(value, option) for option in options_of(annotation)), f"{name} is {value!r}"
    assert Config.from_json(config.to_json()) == config
    found = cost(config)
    assert all(type(n) is int and n >= 0 for n in dataclasses.astuple(found)), found
    assert 0.0 < found.relative < math.inf
    language_model(config.model)
    assert learning_rate_schedule(config.optim, config.train.steps)(0) < math.inf
    assert 0.0 <= sparsity_at(config, config.train.steps) < 1.0


def options_of(annotation: Any) -> tuple[Any, ...]:
    return (annotation,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)


def fits(value: Any, annotation: Any) -> bool:
    return value in get_args(annotation) if get_origin(annotation) is Literal else type(value) is annotation


TREES = [json.loads(config.to_json()) for config in PRESETS.values()]


@given(tree=st.sampled_from(TREES).flatmap(changed))
def test_a_configuration_is_usable_or_refused(tree):
    config, _ = attempt(lambda: Config.from_json(json.dumps(tree)))
    if config is not None:
        assert_usable(config)


@given(content=st.sampled_from(TREES).flatmap(lambda tree: damaged(json.dumps(tree).encode())) | texts())
@example(content=b"[" * 100_000)
@example(content=b'{"model": ' + b"9" * 5000 + b"}")
@example(content=b"\xff")
def test_a_damaged_configuration_file_is_usable_or_named(content):
    with folder() as workdir:
        (workdir / "config.json").write_bytes(content)
        config, _ = attempt(lambda: read_config(workdir), str(workdir))
        if config is not None:
            assert_usable(config)


# --- files of a run


METRICS = st.lists(
    st.fixed_dictionaries({"step": st.integers(0, 9), "split": st.sampled_from(["train", "valid"])}) | JSON, max_size=4
).map(lambda lines: "".join(json.dumps(line) + "\n" for line in lines).encode())


@given(content=METRICS | METRICS.flatmap(damaged))
@example(content=b"3\n")
@example(content=b'{"step": 1}\n')
@example(content=b'{"step": 1, "split": "test"}\n')
@example(content=b"[" * 100_000 + b"\n")
@example(content=b"9" * 5000 + b"\n")
def test_metrics_are_lines_of_numbers_or_refused(content):
    with folder() as workdir:
        path = workdir / "metrics.jsonl"
        path.write_bytes(content)
        lines, _ = attempt(lambda: read_metrics(path), str(path))
        for line in lines or []:
            assert type(line["step"]) is int
            assert line["split"] in ("train", "valid")
            assert all(isinstance(line[name], int | float | None) for name in line.keys() - {"split"})


SUMMARY = {
    "steps": 3,
    "validation_perplexity": 2.5,
    "realised_density": 0.5,
    "relative_cost": 0.7,
    "tokens_per_second": None,
    "decode_tokens_per_second": 1.0,
    "dense_decode_tokens_per_second": 2.0,
    "decode_speedup": 0.5,
    "parameters": 9,
    "parameters_sha256": "0",
    "best_step": 3,
}


@given(content=(st.just(SUMMARY) | changed(SUMMARY) | JSON).map(lambda tree: json.dumps(tree).encode()) | texts())
@example(content=b"{}")
@example(content=b"[" * 100_000)
def test_a_summary_is_shown_or_refused(content):
    with folder() as workdir:
        (workdir / "summary.json").write_bytes(content)
        summary, _ = attempt(lambda: read_summary(workdir), str(workdir))
        if summary is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                train_script.show(summary, workdir, "magnitude")


# --- command lines


def options() -> list[str]:
    """All options of train.py with a value."""
    config = PRESETS["quick"]
    sections = {"model": config.model, "data": config.data, "optim": config.optim, "train": config.train}
    names = [f"--{name}.{field.name}" for name, part in sections.items() for field in dataclasses.fields(part)]
    others = ["--workdir", "--train.profile", "--mesh.data", "--mesh.model", "--distributed.process", "--model.no-such"]
    return [name.replace("_", "-") for name in names + others]


CHOICES = ["qrnn", "dense", "static-block", "magnitude", "cubic", "constant", "0.5", "32", *PRESETS]
VALUES = SCALARS.map(str) | WORDS | st.sampled_from(CHOICES)
FLAGS = st.tuples(st.sampled_from(options()), VALUES | INTEGERS.map(str)).map(list)
ARGUMENTS = st.lists(FLAGS | FLAGS | FLAGS | VALUES.map(lambda value: [value]), max_size=4).map(
    lambda parts: [word for part in parts for word in part]
)


def exit_code(name: str, main: Any, arguments: list[str]) -> int:
    """The exit code of a command line; stderr has nothing, or one error that points to --help."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(main, name, arguments)
    assert code in (0, 1, 2)
    if code:
        first, *others = err.getvalue().splitlines()
        assert first.startswith("error: ")
        assert len(first) > len("error: ")
        assert others == [f"See python {name} --help."] * (code == 2)
    return code


@given(arguments=ARGUMENTS)
@example(arguments=["--train.steps", "1" + "0" * 400])
@example(arguments=["--train.steps", "9" * 5000])
@example(arguments=["--optim.learning-rate", "1e999"])
def test_a_command_line_gives_a_usable_configuration_or_an_error(arguments):
    parsed = []
    code = exit_code("train.py", lambda words: parsed.append(train_script.parse(words)), arguments)
    assert (code == 0) == bool(parsed)
    for config, *_ in parsed:
        assert_usable(config)


EVAL_OPTIONS = st.sampled_from(
    "--split --checkpoint --data.directory --batch-size --generate --words --temperature --top-p --seed".split()
)


@given(arguments=st.lists(st.tuples(EVAL_OPTIONS, VALUES | INTEGERS.map(str)), max_size=3))
def test_a_command_line_of_eval_without_a_run_is_an_error(arguments):
    with folder() as workdir:
        words = ["--workdir", str(workdir / "none"), *(word for pair in arguments for word in pair)]
        assert exit_code("eval.py", eval_script.main, words) in (1, 2)
