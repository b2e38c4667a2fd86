"""The code that the documentation shows is the code that runs: each block stands, word for word, in the file that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs" / "adding-a-component.md")
BLOCK = re.compile(r"(?:^<!-- (\S+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGE = "examples/vlsafe-example"


def blocks(page: Path) -> list[tuple[str, str]]:
    """(the file that a block of code names, the block)"""
    return [(file, text) for file, language, text in BLOCK.findall(page.read_text("utf-8")) if language != "text"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_block_is_a_part_of_the_file_that_it_names(page: Path) -> None:
    assert blocks(page)
    for file, text in blocks(page):
        assert file, f"{page.name}: a block names no file: {text[:80]}"
        assert f"\n{text}" in f"\n{(ROOT / file).read_text('utf-8')}", f"{page.name}: {file} has changed"


def test_each_kind_is_shown_as_file_and_config_and_test() -> None:
    shown = {file for file, _ in blocks(PAGES[1])}
    for module in (ROOT / PACKAGE / "vlsafe_example").glob("[a-z]*.py"):
        assert f"{PACKAGE}/vlsafe_example/{module.name}" in shown
        assert f"{PACKAGE}/tests/test_{module.name}" in shown
    for config in (ROOT / PACKAGE).rglob("conf/*/*.yaml"):
        assert config.relative_to(ROOT).as_posix() in shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
