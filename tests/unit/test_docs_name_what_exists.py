"""The pages name files and operators that exist, and all operators."""

import re
from pathlib import Path

import pytest

from sidewinder.ops.dispatch import available

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    "",
    "src/sidewinder",
    "src/sidewinder/ops",
    "csrc",
    "docs",
    "tools",
    "tests",
    "benchmarks/results",
)
"""Paths are written from one of these."""
SUFFIXES = (".py", ".h", ".cpp", ".md", ".toml")
"""Of our own files; JSON is also what users write."""

EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_of(page):
    return re.findall(r"`([^`\n]+)`", page.read_text())


def paths_in(code):
    """Those with a folder before the name; names alone stand for several places."""
    for path in re.findall(r"(?<![\w./<~])[\w-]+(?:/[\w.*-]+)*/?", code):
        if "/" in path and (path.endswith(SUFFIXES) or exists(path.split("/")[0])):
            yield path


def exists(path):
    return any(list((ROOT / folder).glob(path.rstrip("/"))) for folder in FOLDERS)


@EACH_PAGE
def test_paths_exist(page):
    wrong = [path for code in code_of(page) for path in paths_in(code) if not exists(path)]
    assert not wrong


@EACH_PAGE
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for target in targets:
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        other = page if not file else page.parent / file
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other.read_text()), target


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("name", ["architecture.md", "kernels.md"])
def test_every_operator_is_described(name):
    text = (ROOT / "docs" / name).read_text()
    for operator in available():
        assert ("codec" if operator.startswith("codec_") else operator) in text, operator
