"""The documentation site is built without a warning, leads nowhere that is not there, and has every public name."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import diffusion_core


class Page(HTMLParser):
    """What a page can be linked to by, and what it links to or loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.text = set(), [], [], ""
        self.feed(text)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("link", "script", "img") and (target := attributes.get("href") or attributes.get("src")):
            self.loads.append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    mkdocs = Path(sys.executable).with_name("mkdocs")
    done = subprocess.run(
        [mkdocs, "build", "--strict", "--site-dir", folder],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The page of errors stands for any address, so its own are absolute.
    return {
        path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in folder.rglob("*.html")
        if path.name != "404.html"
    }, folder


def test_every_link_within_the_site_leads_somewhere(site):
    pages, folder = site
    dead = []
    for name, page in pages.items():
        for link in page.links + page.loads:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = os.path.normpath(Path(name).parent / unquote(address.path)) if address.path else name
            known = pages[target].ids if target in pages else set()
            # "." and its like are the home page; "#__skip" belongs to the theme.
            is_there = target == "." or (folder / target).is_file()
            if not is_there or (address.fragment and target in pages and unquote(address.fragment) not in known):
                dead.append((name, link))
    assert dead == []


def test_fences_and_directives_have_become_what_they_stand_for(site):
    pages, _ = site
    assert [name for name, page in pages.items() if "```" in page.text or ":::" in page.text] == []


def test_a_reader_loads_nothing_from_elsewhere(site):
    pages, _ = site
    assert [target for page in pages.values() for target in page.loads if urlsplit(target).netloc] == []


@pytest.mark.parametrize("name", diffusion_core.__all__)
def test_every_public_name_is_described(site, name):
    pages, _ = site
    described = f"{getattr(diffusion_core, name).__module__}.{name}"
    assert any(described in page.ids for page in pages.values())
    assert any(link.endswith(f"#{described}") for link in pages["api/index.html"].links)


def test_every_document_is_a_page(site):
    pages, _ = site
    documents = {path.relative_to("docs").with_suffix(".html").as_posix() for path in Path("docs").rglob("*.md")}
    assert documents == set(pages)
