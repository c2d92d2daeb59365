"""The linter of prose: `python -m tests.prose [FILE ...]`, over documents, docstrings, comments and messages.

Three rules: sentences under 30 words; the words of prose.yaml; and sayings, hedges and filler, which proselint knows.
Code, formulas and names in backquotes are no prose. The exit code is 1 where there is a finding.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry

# proselint itself fills its registry in its command line alone.
from proselint.checks import __register__ as KNOWN_CHECKS  # isort: skip

MOST_WORDS = 29
DOCUMENTS = ("*.md", "docs/**/*.md")
PACKAGES = ("diffusion_core", "flows", "stack", "benchmarks")

RULES = yaml.safe_load(Path(__file__).with_name("prose.yaml").read_text(encoding="utf-8"))
WORDS = [
    (rule, re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE), instead)
    for rule, words in RULES["words"].items()
    for pattern, instead in words.items()
]
SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")
ITEM = re.compile(r"(\s*)([-*] |\d+\. )")
NO_END = re.compile(r"\b(et al|e\.g|i\.e|cf|vs|approx|No)\.", re.IGNORECASE)
END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*]*[A-Z0-9])")
CODE = "Code"
DIRECTIVE = re.compile(r"#\s*(type:|noqa|pragma|isort:|fmt:|!)")
# Names of what is called with a message for a person.
SPEAKS = re.compile(r"(Error|Unavailable|Failed|NoServer|print|warning|info|error|Option|Argument|Field|exit)$")


class Finding(NamedTuple):
    place: str
    line: int
    rule: str
    message: str


class Paragraph(NamedTuple):
    line: int
    text: str  # with its line ends


def markdown(text):
    """Return the paragraphs of a Markdown document; each list item, heading and cell of a table is one."""
    paragraphs, lines, fence, was_blank, indent = [], [], None, True, 0

    def end():
        if lines:
            paragraphs.append(Paragraph(lines[0][0], "\n".join(each for _, each in lines)))
            lines.clear()

    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if fence or bare.startswith("```"):
            end()
            fence = None if fence and bare == "```" else fence or bare
            continue
        is_item = ITEM.match(line)
        is_code = was_blank and line.startswith(" " * (indent + 4))
        if not bare or is_item or bare.startswith(("#", "|", ":::")) or is_code:
            end()
        if bare and not line.startswith(" "):
            indent = 0
        if is_item and not is_code:
            indent = is_item.end()
        if bare.startswith("|"):
            paragraphs += [Paragraph(number, cell.strip()) for cell in bare.strip("|").split("|")]
        elif bare.startswith("#"):
            paragraphs.append(Paragraph(number, bare.lstrip("# ")))
        elif bare and not is_code and not bare.startswith(":::"):
            lines.append((number, line[is_item.end() :].strip() if is_item else line.strip()))
        # A block of code goes on over its lines; a paragraph that is indented by itself is one.
        was_blank = not bare or is_code
    end()
    return paragraphs


def docstrings(source):
    """Return the paragraphs of all docstrings; each argument, attribute and exception is one."""
    paragraphs = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node, clean=False)
        ):
            margin = " " * node.body[0].col_offset
            in_section, lines = False, []
            for line in (each.removeprefix(margin) for each in text.splitlines()):
                in_section = bool(SECTION.match(line)) or (in_section and (not line or line.startswith(" ")))
                entry = re.match(r" {4}(?! )[\w*, ]+: ", line) if in_section else None
                # As Markdown has it: an entry is a list item, what it goes on with belongs to it.
                lines.append(f"- {line[entry.end() :]}" if entry else "" if SECTION.match(line) else line)
            paragraphs += [
                Paragraph(node.body[0].lineno - 1 + number, each) for number, each in markdown("\n".join(lines))
            ]
    return paragraphs


def comments(source):
    """Return the paragraphs of all comments; consecutive lines are one. Directives to tools are left out."""
    paragraphs = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or DIRECTIVE.match(token.string):
            continue
        comment = Paragraph(token.start[0], token.string.lstrip("# "))
        last = paragraphs[-1] if paragraphs else Paragraph(0, "")
        if token.line.strip().startswith("#") and comment.line == last.line + last.text.count("\n") + 1:
            paragraphs[-1] = Paragraph(last.line, f"{last.text}\n{comment.text}")
        else:
            paragraphs.append(comment)
    return paragraphs


def messages(source):
    """Return the texts of exceptions, prints, log lines and help, with X for each value in them."""
    return [
        Paragraph(text.lineno, message)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and (isinstance(node.func, ast.Name | ast.Attribute))
        and SPEAKS.search(name(node))
        for text in [
            *node.args,
            *(each.value for each in node.keywords if each.arg in ("help", "description", "epilog")),
        ]
        if " " in (message := literal(text))
    ]


def name(call):
    return call.func.id if isinstance(call.func, ast.Name) else call.func.attr


def literal(node):
    """Return the text of a string or f-string, or "" for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]", "X", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(each) if isinstance(each, ast.Constant) else "X" for each in node.values)
    return ""


def plain(text):
    """Return a paragraph without code, addresses and marks; no line end is lost."""
    text = re.sub(r"(`+)(.+?)\1", lambda match: CODE + "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])(\{[^}]*\})?", r"\1", text)
    text = re.sub(r"https?://[^\s)>]+", CODE, text)
    return re.sub(r"\*\*|(?<!\w)[*_]+|[*_]+(?!\w)", "", text)


def findings(place, paragraphs):
    """Yield what is wrong with paragraphs."""
    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many(KNOWN_CHECKS)
    checks = registry.get_all_enabled({**dict.fromkeys(DEFAULT["checks"], False), **RULES["proselint"]})
    for first, paragraph in paragraphs:
        text = plain(paragraph)

        def at(offset, first=first, text=text):
            return first + text.count("\n", 0, offset)

        start = 0
        guarded = NO_END.sub(lambda match: match[0][:-1] + "_", text)
        for end in [*(match.end() for match in END.finditer(guarded)), len(text)]:
            count = len(re.findall(r"\S*\w\S*", text[start:end]))
            if count > MOST_WORDS:
                yield Finding(place, at(start), "length", f"a sentence of {count} words: at most {MOST_WORDS}")
            start = end
        for rule, pattern, instead in WORDS:
            for match in pattern.finditer(text):
                found = " ".join(match[0].split())
                yield Finding(place, at(match.start()), rule, f"'{found}': {instead}")
        padded = f"\n{text}\n"
        for check in checks:
            for result in check.check_with_flags(padded):
                message = f"'{padded[slice(*result.span)].strip()}': {result.message}"
                yield Finding(place, at(max(0, result.span[0] - 1)), f"proselint.{result.check_path}", message)


def check(path):
    """Return the findings in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return sorted(findings(str(path), markdown(text)))
    return sorted(findings(str(path), [*docstrings(text), *comments(text), *messages(text)]))


def main(names):
    paths = [Path(name) for name in names] or [
        *(path for pattern in DOCUMENTS for path in sorted(Path().glob(pattern))),
        *(path for package in PACKAGES for path in sorted(Path(package).rglob("*.py"))),
    ]
    found = [finding for path in paths for finding in check(path)]
    for finding in found:
        print(f"{finding.place}:{finding.line}: {finding.rule}: {finding.message}")
    for rule, count in sorted(Counter(finding.rule for finding in found).items()):
        print(f"{count:6} {rule}")
    print(f"{len(found):6} findings in {len(paths)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
