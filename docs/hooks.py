"""What MkDocs does with the pages before it builds the site: raw results and notebooks become part of it."""

import posixpath
import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LINK = re.compile(r"\]\(\.\./benchmarks/results/([^)#]*)")


@event_priority(100)  # before mkdocs-jupyter, which makes pages of the notebooks that it finds
def on_files(files, config):
    """Adds what lies outside of the folder of the pages in the repository: notebooks, and raw lines for links."""
    for path in sorted(ROOT.glob("examples/*.ipynb")):
        files.append(File(f"examples/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted(RESULTS.rglob("*.jsonl")):
        name = posixpath.join("raw", path.relative_to(RESULTS).as_posix())
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links to raw lines to where the site has them."""
    up = posixpath.relpath("raw", posixpath.dirname(page.file.src_uri) or ".")
    return LINK.sub(lambda link: f"]({up}/{link[1]}", markdown)
