"""The linter of prose finds what it is for, where it is, and nothing in code."""

import pytest

from tests.prose import check, comments, docstrings, findings, main, markdown, messages

LONG = "Every" + " word" * 29 + "."


def rules(text, paragraphs=markdown):
    return [(found.line, found.rule) for found in findings("here", paragraphs(text))]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (LONG, "length"),
        ("Training never walks through the chain.", "term"),
        ("Training goes on with the last checkpoint.", "term"),
        ("A first guess of the image.", "term"),
        ("Give it a guidance, Guidance(scale=2.0), say.", "plain"),
        ("The file is no image.", "plain"),
        ("It is very fast.", "filler"),
        ("It is believed that this works.", "weasel"),
        ("We are back to square one.", "proselint.cliches.misc.write_good"),
    ],
)
def test_each_rule_finds_its_fault(text, rule):
    assert rules(f"# A title\n\nA good sentence.\n{text}\n") == [(4, rule)]


@pytest.mark.parametrize(
    "text",
    [
        f"```sh\n{LONG} It draws.\n```",
        f"A list:\n\n    {LONG} It draws.",
        f"1. An item:\n\n       {LONG} It draws.",
        "`draw` and [the place](walk.md) and https://example.org/walks",
        "A sampler as in Song et al. 2020 " + "and more " * 10 + "end.",
        f"{LONG[:-6]}. {LONG[:-6]}.",
        "| " + " | ".join(["word"] * 40) + " |",
    ],
)
def test_code_and_short_sentences_are_no_findings(text):
    assert rules(text) == []


SOURCE = '''"""A module that walks.

    x_t = draw(x0) and draw(x1)
"""


def function(draws):
    """Return a number.

    Args:
        draws: a number of
            good things.

    Raises:
        ValueError: it is no number.
    """
    return "walks"
'''


def test_docstrings_are_read_by_line_without_names_of_arguments_and_without_code():
    assert rules(SOURCE, docstrings) == [(1, "term"), (11, "filler"), (15, "plain")]


MESSAGES = """
# It draws
# a very long line.
walks = 1  # noqa: very
raise UserError(f"{name} is no {kind}: write" " a number of them")
logger.warning("it %s quite well", walks)
run("it walks, and is no message")
print(walks)
"""


def test_comments_are_read_without_directives():
    assert rules(MESSAGES, comments) == [(2, "term"), (3, "filler")]


def test_messages_are_read_where_they_are_shown_to_somebody():
    assert rules(MESSAGES, messages) == [(5, "plain"), (5, "filler"), (6, "filler")]


def test_findings_are_printed_with_their_count(tmp_path, capsys):
    bad, good = tmp_path / "bad.md", tmp_path / "good.md"
    bad.write_text("It walks.\n\nIt is very good.\n", encoding="utf-8")
    good.write_text("It samples.\n", encoding="utf-8")
    assert main([str(good)]) == 0
    assert main([str(good), str(bad)]) == 1
    printed = capsys.readouterr().out
    assert f"{bad}:1: term: 'walks'" in printed
    assert "2 findings in 2 files" in printed
    assert [found.line for found in check(bad)] == [1, 3]
