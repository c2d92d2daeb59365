"""What pydantic finds wrong with content from outside, in sentences."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

# Of a value or name in a sentence, in characters, and of clauses.
LONGEST = 200
MOST = 5


def sentence(
    problems: Sequence["ErrorDetails"], key: Callable[[Location], str], known: Callable[[Location], Iterable[str]]
) -> str:
    """Return the problems of a validation, each as a clause with its key.

    Args:
        problems: what pydantic's `ValidationError.errors` returns.
        key: returns how a location is named for people.
        known: returns the valid keys at a location.
    """
    clauses: list[str] = []
    for problem in problems:
        place = problem["loc"]
        # A list whose every item is wrong is too short for pydantic as well.
        if problem["type"] == "too_short" and any(
            each["loc"][: len(place)] == place != each["loc"] for each in problems
        ):
            continue
        if len(clauses) == MOST:
            clauses.append("and more")
            break
        name = _cut(key(place))
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            remedy = hint(place[-1], known(place[:-1])).rstrip() or "remove it or correct its spelling"
            clause = f"unknown key {name}: {remedy}"
        elif problem["type"] == "union_tag_invalid":
            tag, names = problem["ctx"]["tag"], _quoted(problem["ctx"]["expected_tags"])
            clause = f"{name}.kind is {_shown(tag)}: {hint(tag, names)}it must be one of {', '.join(names)}"
        elif problem["type"] == "literal_error":
            names = _quoted(problem["ctx"]["expected"])
            question = hint(problem["input"], names)
            clause = f"{name} is {_shown(problem['input'])}: {question}it must be one of {', '.join(names)}"
        elif problem["type"] == "union_tag_not_found":
            clause = f"{name}.kind is missing: add it"
        elif problem["type"] == "missing":
            clause = f"{name} is missing: add it"
        elif problem["type"] == "value_error":
            clause = f"{name + ': ' if name else ''}{problem['ctx']['error']}"
        else:
            clause = f"{name} is {_shown(problem['input'])}: {demand(problem['msg'])}"
        clauses.append(clause)
    return "; ".join(clauses)


def demand(message: str) -> str:
    """Return pydantic's message as what must be: `Input should be a valid integer` as `it must be a valid integer`."""
    changed = re.sub(r"^[A-Z]\w+ should ", "it must ", message)
    return changed if changed[:2].isupper() else changed[:1].lower() + changed[1:]


def hint(word: object, names: Iterable[str]) -> str:
    """Return a question for the nearest of the valid names, as `did you mean dim? `, or "" if none is near.

    Numbers have none: 12 does not mean 2.
    """
    wanted = str(word).lower()
    if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", wanted):
        return ""
    lowered = {name.lower(): name for name in names}
    # A part of a long name is not near it: recall is one of precision_recall.
    nearest = get_close_matches(wanted, lowered, n=1) or [
        name for name in lowered if len(wanted) > 2 and wanted in name
    ]
    return f"did you mean {lowered[nearest[0]]}? " if nearest else ""


def _shown(value: object) -> str:
    """Return a value as a file or a body has it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _quoted(text: str) -> list[str]:
    return re.findall(r"'(.*?)'", text)
