"""A corpus that comes with every Python: its documentation topics and the docstrings of its standard library.

The standard library is parsed, not imported. An entry is one docstring or one topic; a hash of its qualified name
decides its split (90 / 5 / 5), so that a module's functions spread over all three. A paragraph that occurs again, in
any entry, is left out: documentation repeats itself, and no paragraph of train may stand in valid or test. The corpus
depends on the version of Python only, not on what is installed beside it.
"""

import ast
import contextlib
import gzip
import hashlib
import importlib
import inspect
import json
import logging
import re
import sys
import sysconfig
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bwds.data.sources import SPLITS, Split, cache_dir
from bwds.filesystem import write_bytes

_FORMAT = 1  # part of the cache's file name; increase it when the code below makes another text
_MIN_COUNT = 2  # words seen less often in the training split become <unk>
_MIN_TOKENS = 100_000

# Tests, vendored code, and packages that distributions of Python often leave out or ship separately.
_SKIPPED = {
    "test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "distutils", "ensurepip", "venv", "pydoc_data",
    "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip
# These modules are written in C, so there is no source to parse. Every build has them, and importing them does nothing.
_BUILTIN_MODULES = (
    "builtins", "_bisect", "_codecs", "_collections", "_functools", "_heapq", "_io", "_operator", "_random", "_struct",
    "_thread", "array", "binascii", "cmath", "gc", "itertools", "marshal", "math",
)  # fmt: skip

# A word, or a run of one punctuation character.
_TOKEN = re.compile(r"\w+|([^\w\s])\1*")


def splits() -> dict[str, Split]:
    """Train, valid and test of the corpus, from the cache, or built (a few seconds) and cached.

    Raises:
        ValueError: this Python comes without its documentation.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    path = cache_dir() / f"pydoc-{_FORMAT}-{sys.implementation.name}-{version}.json.gz"
    texts = _read_cache(path)
    if texts is None:
        texts = build()
        _write_cache(path, texts)
    return {split: Split(f"pydoc {split} split", texts[split].split("\n")) for split in SPLITS}


def build() -> dict[str, str]:
    """The text of each split: lines joined by newlines, tokens by blanks, rare words replaced by ``<unk>``.

    Raises:
        ValueError: this Python comes without its documentation.
    """
    lines: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    for split, paragraph in paragraphs():
        lines[split] += paragraph
    counts = Counter(word for line in lines["train"] for word in line)
    if counts.total() < _MIN_TOKENS:
        raise ValueError(
            f"The documentation that comes with this Python ({sys.executable}) has {counts.total()} words, too few for "
            "the pydoc corpus: its standard library has no source files or no docstrings. Use a full installation of "
            "Python, or text files of yours with data.dataset='text' and data.directory=DIR."
        )
    return {
        split: "\n".join(
            " ".join(word if counts[word] >= _MIN_COUNT else "<unk>" for word in line) for line in lines[split]
        )
        for split in SPLITS
    }


def paragraphs() -> Iterator[tuple[str, list[list[str]]]]:
    """Split and lines of tokens of every paragraph of the corpus, none of them twice."""
    seen = set()
    for name, text in sorted(_entries(), key=lambda entry: entry[0]):
        for paragraph in _tokenize(text):
            words = " ".join(word for line in paragraph for word in line)
            if words not in seen:
                seen.add(words)
                yield _split_of(name), paragraph


def _split_of(name: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


def _tokenize(text: str) -> Iterator[list[list[str]]]:
    """Paragraphs as lists of lines of tokens; lines without a letter or digit (rules, lone brackets) are dropped."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text).lower()):
        lines = [line for line in paragraph.split("\n") if re.search(r"\w", line)]
        if lines:
            # Runs of punctuation are cut to three characters: rules come in all lengths.
            yield [[m[0][:3] if m[1] else m[0] for m in _TOKEN.finditer(line)] for line in lines]


def _entries() -> Iterator[tuple[str, str]]:
    """Qualified name and text of every entry."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - _SKIPPED):
        single = stdlib / f"{name}.py"
        for path in [single] if single.is_file() else (stdlib / name).rglob("*.py"):
            parts = path.relative_to(stdlib).with_suffix("").parts
            if _SKIPPED.isdisjoint(parts):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # invalid escapes in old modules
                    tree = ast.parse(path.read_bytes(), str(path))
                yield from _docstrings(tree, ".".join(parts))
    for name in _BUILTIN_MODULES:
        yield from _builtin_docstrings(name)
    with contextlib.suppress(ImportError):
        from pydoc_data.topics import topics

        for name, text in topics.items():
            yield f"topic:{name}", text


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if not isinstance(node, ast.Module):
            name = f"{name}.{node.name}"
        if text := ast.get_docstring(node):
            yield name, text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _docstrings(child, name)


def _builtin_docstrings(module_name: str) -> Iterator[tuple[str, str]]:
    module = importlib.import_module(module_name)
    found: list[tuple[str, object]] = [(module_name, module)]
    for name, value in vars(module).items():
        if callable(value):
            found.append((f"{module_name}.{name}", value))
        if isinstance(value, type):
            members = vars(value).items()
            found += [
                (f"{module_name}.{name}.{key}", member)
                for key, member in members
                if inspect.isroutine(member) or inspect.isdatadescriptor(member)
            ]
    for name, value in found:
        if isinstance(text := getattr(value, "__doc__", None), str):
            yield name, text


def _read_cache(path: Path) -> dict[str, str] | None:
    """The cached texts; None when there are none, or when the file is damaged (gzip carries a checksum)."""
    try:
        texts = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return texts if isinstance(texts, dict) and texts.keys() == set(SPLITS) else None


def _write_cache(path: Path, texts: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, gzip.compress(json.dumps(texts).encode(), mtime=0))
    except OSError as error:
        logging.getLogger(__name__).warning("The pydoc corpus could not be cached: %s.", error)
