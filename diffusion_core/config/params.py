"""Reads params.yaml as YAML 1.2, like DVC, without converting values to other types."""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffusion_core.config.settings import Settings
from diffusion_core.documents import read_yaml
from diffusion_core.errors import UserError

PARAMS_FILE = Path("params.yaml")


def load_settings(file: Path = PARAMS_FILE) -> Settings:
    """Read and check params.yaml.

    Raises:
        UserError: the file is missing, is not YAML, or a key is unknown, missing or of the wrong type.
    """
    try:
        content = read_yaml(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: run the command from the project's folder") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} has no sections: restore it, or write {', '.join(Settings.model_fields)}")
    try:
        # Validated as JSON, where pydantic's strict mode accepts a list for a tuple and a mapping for a choice.
        return Settings.model_validate_json(json.dumps(_plain(content), default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"{file}: {_sentence(error, content)}") from None


def _plain(content: Any) -> Any:
    """Return YAML content with strings as keys, because YAML also permits numbers and dates."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list) else content


def _sentence(error: ValidationError, content: dict[str, Any]) -> str:
    """Return the problems of a validation, each as a clause with its key."""
    sentences = []
    problems = error.errors(include_url=False)
    for problem in problems:
        place = problem["loc"]
        # A list whose every item is wrong is too short for pydantic as well.
        if problem["type"] == "too_short" and any(
            each["loc"][: len(place)] == place != each["loc"] for each in problems
        ):
            continue
        key = _key(problem["loc"], content)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            nearest = get_close_matches(str(problem["loc"][-1]), _known_keys(problem["loc"][:-1]), n=1)
            remedy = f"did you mean {nearest[0]}?" if nearest else "remove it or correct its spelling"
            sentence = f"unknown key {key}: {remedy}"
        elif problem["type"] == "union_tag_invalid":
            tag, names = problem["ctx"]["tag"], re.findall(r"'(.*?)'", problem["ctx"]["expected_tags"])
            sentence = f"{key}.kind is {tag!r}: {_hint(tag, names)}it must be one of {', '.join(names)}"
        elif problem["type"] == "literal_error":
            value, names = problem["input"], re.findall(r"'(.*?)'", problem["ctx"]["expected"])
            sentence = f"{key} is {value!r}: {_hint(value, names)}it must be one of {', '.join(names)}"
        elif problem["type"] == "union_tag_not_found":
            sentence = f"{key}.kind is missing: add it"
        elif problem["type"] == "missing":
            sentence = f"{key} is missing: add it"
        elif problem["type"] == "value_error":
            sentence = f"{key + ': ' if key else ''}{problem['ctx']['error']}"
        else:
            sentence = f"{key} is {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
        sentences.append(sentence)
    return "; ".join(sentences)


def _hint(value: Any, names: Sequence[str]) -> str:
    """Return a question for the nearest of the valid names, which have small letters, or "" if none is near."""
    word = str(value).lower()
    # A part of a long name is not near it: recall is one of precision_recall.
    nearest = get_close_matches(word, names, n=1) or [name for name in names if len(word) > 2 and word in name]
    return f"did you mean {nearest[0]}? " if nearest else ""


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """Return the valid keys at a location of params.yaml, from the schema of `Settings`."""
    schema: dict[str, Any] = Settings.model_json_schema()
    node = schema
    for part in location:
        if part in node.get("properties", {}):
            node = node["properties"][part]
        elif "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node.get("items") or node.get("additionalProperties") or {}
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return list(node.get("properties", {}))


def _key(location: Sequence[str | int], content: Any) -> str:
    """Return a location as a dotted key, without the `kind` that pydantic inserts before the keys of a choice."""
    parts = []
    was_kind = False
    for part in location:
        # Once, because a choice may have an option with its own name, as `url`.
        was_kind = not was_kind and isinstance(content, dict) and content.get("kind") == part
        if was_kind:
            continue
        parts.append(str(part))
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            content = None
    return ".".join(parts)
