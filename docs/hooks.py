"""What MkDocs does with the pages before it builds the site: raw results become part of it."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
LINK = re.compile(r"\]\(\.\./benchmarks/results/([^)#]*)")


def on_files(files, config):
    """Adds the raw lines that pages link to: in the repository they lie outside of the folder of the pages."""
    for path in sorted(RESULTS.rglob("*.jsonl")):
        name = posixpath.join("raw", path.relative_to(RESULTS).as_posix())
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links to raw lines to where the site has them."""
    up = posixpath.relpath("raw", posixpath.dirname(page.file.src_uri) or ".")
    return LINK.sub(lambda link: f"]({up}/{link[1]}", markdown)
