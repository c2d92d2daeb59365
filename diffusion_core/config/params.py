"""Reads params.yaml as YAML 1.2, like DVC, without converting values to other types."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffusion_core.config.settings import Settings
from diffusion_core.documents import read_yaml
from diffusion_core.errors import UserError
from diffusion_core.problems import sentence

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
        problems = sentence(error.errors(include_url=False), lambda place: _key(place, content), _known_keys)
        raise UserError(f"{file}: {problems}") from None


def _plain(content: Any) -> Any:
    """Return YAML content with strings as keys, because YAML also permits numbers and dates."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    return [_plain(value) for value in content] if isinstance(content, list) else content


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
