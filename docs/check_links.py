"""Follows the links of a built site to its own pages and files: `python docs/check_links.py site`.

MkDocs checks those in Markdown alone, not those in notebooks, in templates or in the text of docstrings.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the anchors that others may name."""

    def __init__(self, html):
        super().__init__()
        self.links, self.anchors = [], {"", "top"}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append(value)
            if key == "id" or (tag == "a" and key == "name"):
                self.anchors.add(value)


def broken(site):
    """(page, link) for every link without a scheme that leads to no file of the site, or to no anchor of its page."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in Path(site).rglob("*.html")}
    for path, page in pages.items():
        if path.name == "404.html":  # Shown at any address, so its links are absolute, below the address of the site.
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            there = target in pages and unquote(parts.fragment) in pages[target].anchors
            if not (there if target.suffix == ".html" else target.is_file()):
                yield path.relative_to(Path(site).resolve()), link


def main():
    found = list(broken(sys.argv[1]))
    for page, link in found:
        print(f"{page}: {link} leads nowhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
