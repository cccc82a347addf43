"""Hypothesis strategies of bad input: numbers, texts, JSON and files that nobody meant; what must come of it."""

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

_EDGES = [2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400, -(10**400)]
INTEGERS = st.integers(-3, 70) | st.sampled_from(_EDGES) | st.integers()
FLOATS = st.floats(0.0, 1.0) | st.floats() | st.sampled_from([0.0, -0.0, 1.0, math.nextafter(1.0, 0.0), 5e-324, 1e300])
NUMPY_SCALARS = (
    st.integers(-3, 70).map(np.int64)
    | st.floats(width=32).map(np.float32)
    | st.floats().map(np.float64)
    | st.booleans().map(np.bool_)
)
NUMBERS = INTEGERS | FLOATS | NUMPY_SCALARS | st.booleans()
WORDS = st.sampled_from(
    ["", "none", "None", "true", "nan", "-1", "1e9", "\x00", "a b", "é", "\udcff", "~nobody", "9" * 5000]
)
SCALARS = st.none() | st.booleans() | INTEGERS | FLOATS | WORDS | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def attempt(function: Callable[[], Any], *named: str) -> tuple[Any, str | None]:
    """(result, None) of a function, or (None, sentence) if it refuses in a sentence, which must hold the names.

    Anything but a ``ValueError`` or ``OSError`` gets through. So do subclasses of ``ValueError``, which tell of an
    offset in some string instead of what is wrong with the input, and messages that are no line of text.
    """
    try:
        return function(), None
    except (ValueError, OSError) as raised:
        if not isinstance(raised, OSError) and type(raised) is not ValueError:
            raise
        message = str(raised)
    assert message.strip(), "an error without a message"
    assert "\n" not in message, message
    for name in named:
        assert name in message, f"{name!r} is not in {message!r}"
    return None, message


# --- bytes and texts

_WHITE = [" ", "\n", "\n", "\r\n", "\t", "\x85", "\u2028", "\x1c"]
_PIECES = ["a", "b", "c", "é", "<unk>", "<eos>", "\ufeff", "\x00", *_WHITE]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with up to three changes: cut, flipped, inserted or removed somewhere."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["cut", "flip", "insert", "remove"]))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
        elif kind == "remove":
            content = content[:at] + content[at + draw(st.integers(1, 8)) :]
    return content


def texts() -> st.SearchStrategy[bytes]:
    """The bytes of a text file: words and lines, all kinds of white space, other encodings, anything."""
    text = st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=30).map("".join)
    return (
        text.map(lambda t: t.encode("utf-8", "replace"))
        | st.tuples(text, st.sampled_from(["utf-8-sig", "utf-16", "utf-32-le", "latin-1", "utf-7"])).map(
            lambda pair: pair[0].encode(pair[1], "replace")
        )
        | st.tuples(st.sampled_from([b"a", b"a ", b"\x00", b"\n", b"a\n"]), st.integers(0, 5000)).map(
            lambda pair: pair[0] * pair[1]
        )
        | st.binary(max_size=60)
    )


# --- files and folders


class Link(NamedTuple):
    """A symbolic link."""

    target: str


def entries(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[Any]:
    """What may be at a path: a file, seldom nothing, a folder, or a link to some other place."""
    links = st.sampled_from(["train.txt", "itself", "nowhere", ".", "valid.txt", "/dev/null"]).map(Link)
    return content | content | content | st.sampled_from([None, "folder"]) | links


def place(path: Path, entry: Any) -> None:
    """Puts an entry at a path where there is nothing."""
    if isinstance(entry, bytes):
        path.write_bytes(entry)
    elif isinstance(entry, Link):
        path.symlink_to(path.name if entry.target == "itself" else entry.target)
    elif entry == "folder":
        path.mkdir()


# --- JSON


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON value with one to three of its parts removed, replaced or added."""
    tree = _copy(tree)
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        while draw(st.integers(0, 4)) and (inner := [v for v in node.values() if isinstance(v, dict) and v]):
            node = draw(st.sampled_from(inner))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if kind == "add" or not node:
            node[draw(st.text(max_size=4))] = draw(JSON)
            continue
        key = draw(st.sampled_from(sorted(node)))
        if kind == "remove":
            del node[key]
        else:
            node[key] = draw(SCALARS | JSON)
    return tree


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


@st.composite
def folder_changes(draw: st.DrawFn, root: Path) -> list[tuple[Any, ...]]:
    """One to three changes to a folder of files, as ``apply`` takes them: what disks, users and backups do."""
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    folders = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_dir())
    numbered = [path for path in folders if path.name.isdigit()]
    names = st.sampled_from(["0", "1", "2", "3", "01", "9" * 30, "1\u00b2", "x", "-1", "2.orbax-checkpoint-tmp"])
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["write", "write", "delete", "swap", "rename", "copy", "add", "become"]))
        path = draw(st.sampled_from(files))
        if kind == "write":
            changes.append((kind, path, draw(damaged((root / path).read_bytes()))))
        elif kind == "delete":
            changes.append((kind, draw(st.sampled_from(files + folders))))
        elif kind == "swap":
            same = [other for other in files if other.name == path.name]
            pairs = st.tuples(st.just(path), st.sampled_from(same)) | st.tuples(st.just(path), st.sampled_from(files))
            changes.append((kind, *draw(pairs | st.permutations(numbered).map(lambda order: tuple(order[:2])))))
        elif kind in ("rename", "copy"):
            old = draw(st.sampled_from([*numbered, path]))
            changes.append((kind, old, old.with_name(draw(names))))
        elif kind == "add":
            parent = draw(st.sampled_from(folders))
            changes.append((kind, parent / draw(names), draw(entries(st.binary(max_size=20)))))
        else:
            changes.append((kind, path, draw(st.sampled_from(["folder", Link("itself"), Link("nowhere"), Link(".")]))))
    return changes


def apply(root: Path, changes: list[tuple[Any, ...]]) -> None:
    """Makes changes to a folder; one that the changes before have made impossible is left out."""
    for kind, path, *rest in changes:
        with contextlib.suppress(OSError):
            path = root / path
            if kind == "write":
                path.write_bytes(*rest)
            elif kind in ("delete", "become"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                place(path, *rest or [None])
            elif kind == "swap":
                other, aside = root / rest[0], root / "aside"
                path.rename(aside)
                other.rename(path)
                aside.rename(other)
            elif kind == "rename":
                path.rename(root / rest[0])
            elif kind == "copy":
                copy = shutil.copytree if path.is_dir() else shutil.copyfile
                copy(path, root / rest[0])
            elif not path.exists():
                place(path, *rest)
