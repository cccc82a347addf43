"""The site of docs/: its menu leads to every page, and its links are followed."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LINKS = runpy.run_path(str(ROOT / "docs" / "check_links.py"))


def entries(menu, depth=1):
    """(page, clicks from the home page) of all entries."""
    for entry in menu:
        (place,) = entry.values()
        if isinstance(place, str):
            yield place, depth
        else:
            yield from entries(place, depth + 1)


def test_every_page_is_two_clicks_away():
    menu = dict(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {path.name for path in ROOT.glob("docs/*.md")}
    notebooks = {f"examples/{path.name}" for path in ROOT.glob("examples/*.ipynb")}
    assert menu.keys() == pages | notebooks
    assert max(menu.values()) <= 2


@pytest.fixture
def site(tmp_path):
    """Two pages: where(link) puts it on the first."""
    (tmp_path / "other page").mkdir()
    (tmp_path / "other page" / "index.html").write_text('<h2 id="there">Title</h2><a href="..#here">back</a>')
    (tmp_path / "figure.svg").write_text("<svg/>")

    def where(link):
        (tmp_path / "index.html").write_text(f'<p id="here"><a href="{link}">link</a><img src="{link}"></p>')
        return [(str(page), found) for page, found in LINKS["broken"](tmp_path)]

    return where


@pytest.mark.parametrize(
    "link", ["other%20page/#there", "other%20page/", "figure.svg", "#here", "#", ".", "https://a.b/c", "mailto:a@b.c"]
)
def test_a_link_that_leads_somewhere(site, link):
    assert site(link) == []


@pytest.mark.parametrize("link", ["other%20page/#their", "other", "figure.png", "#there", "../figure.svg"])
def test_a_link_that_leads_nowhere(site, link):
    assert site(link) == [("index.html", link)] * 2


@pytest.mark.parametrize("workflow", sorted(ROOT.glob(".github/workflows/*.yml")), ids=lambda path: path.name)
def test_a_workflow_names_what_exists(workflow):
    """Actions in a major version, and scripts of this repository."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", action)] == []
    scripts = [step["run"].split()[0] for step in steps if "run" in step]
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    assert {need for job in jobs.values() for need in [job.get("needs")] if need} <= jobs.keys()
