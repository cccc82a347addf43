"""What MkDocs does with the pages before it builds the site: examples and raw results become part of it."""

import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks/results", "examples")
"""They lie beside the folder of the pages in the repository, and within it on the site."""
SHOWN = {".jsonl", ".ipynb", ".py"}

LINK = re.compile(rf"\]\(((?:\.\./)*)\.\./({'|'.join(FOLDERS)})/")
EXECUTED = re.compile(r"^```python run$", re.MULTILINE)
"""Python that the tests run; highlighting knows no such language."""


@event_priority(100)  # before mkdocs-jupyter, which makes pages of the notebooks that it finds
def on_files(files, config):
    """Adds notebooks, scripts and raw lines, which pages link to."""
    for folder in FOLDERS:
        for path in sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in SHOWN):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads links to examples and raw lines to where the site has them, and marks Python as nothing but Python."""
    return EXECUTED.sub("```python", LINK.sub(r"](\1\2/", markdown))
