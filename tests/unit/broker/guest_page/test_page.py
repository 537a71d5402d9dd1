"""The page's HTML and the files it loads."""

from __future__ import annotations

import re
from pathlib import Path

from presignd.broker import guest_page
from presignd.broker.guest_page import page
from presignd.pages.html import tag

WEB = Path(guest_page.__file__).parent / "web"
PAGE = page.guest_page(tag("p", "<needs> JavaScript"))


def test_every_file_of_the_page_is_served_and_no_other() -> None:
    there = {path.name for path in WEB.iterdir() if path.suffix in {".js", ".css"}}
    assert set(page.ASSETS) - {"style.css", "icon.svg"} == there
    for name in page.ASSETS:
        assert page.asset(name)


def test_modules_load_only_what_is_served() -> None:
    for path in WEB.glob("*.js"):
        text = path.read_text("utf-8")
        for name in re.findall(r'^import .* from "\./(.*)";', text, re.MULTILINE):
            assert name in page.ASSETS, f"{path.name} loads {name}"
        assert "http://" not in text.replace("http://s3.amazonaws.com/doc/2006-03-01/", "")
        assert "innerHTML" not in text


def test_the_policy_allows_the_store_and_nothing_unsafe() -> None:
    policy = page.security_policy("https://s3.example.org")
    assert "connect-src 'self' https://s3.example.org;" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_what_the_page_says_is_there_in_every_language() -> None:
    used = set(re.findall(r'data-words="(\w+)"', PAGE))
    assert {"title", "drop", "files"} < used
    for path in WEB.glob("words.*.js"):
        text = path.read_text("utf-8")
        for words in used:
            assert re.search(rf"^  {words}:", text, re.MULTILINE), f"{path.name} lacks {words}"


def test_without_javascript_it_says_what_to_do() -> None:
    assert '<section id="unscripted"><p>&lt;needs&gt; JavaScript</p></section>' in PAGE
