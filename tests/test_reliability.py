"""The table of promises names files that exist and hold tests."""

import re
from pathlib import Path

import pytest

ROW = re.compile(r"^\|.*\|$", re.MULTILINE)


def missing(text):
    """The files that a row names as its test and that hold none; a row without a file counts as one."""
    tables = [block for block in text.split("\n\n") if block.startswith("| promise ")]
    rows = [row for table in tables for row in ROW.findall(table)[2:]]
    files = [(row, re.findall(r"`(tests/[^`]+)`", row.rstrip("|").rpartition("|")[2])) for row in rows]
    assert rows
    without = [row for row, named in files if not named]
    return without + [file for _, named in files for file in named if not holds_tests(Path(file))]


def holds_tests(file):
    return file.is_file() and re.search(r"^def test_", file.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_promise_has_a_test():
    assert missing(Path("docs/reliability.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("test", ["", "`tests/faults/test_that_is_gone.py`", "`tests/conftest.py`"])
def test_a_promise_without_one_is_found(test):
    """The control."""
    assert missing(f"| promise | what is done | test |\n|---|---|---|\n| a | b | {test} |\n") != []
