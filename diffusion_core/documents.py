"""Reads JSON and YAML that somebody else may have written: never too large, and without running what it names."""

import json
from pathlib import Path
from typing import Any

# More than any description that a stage writes.
LARGEST_BYTES = 64 * 2**20


def read_small(file: Path) -> bytes:
    """Return the content of a file that describes others.

    Raises:
        ValueError: it is larger than `LARGEST_BYTES`.
        OSError: it is missing or cannot be read.
    """
    with file.open("rb") as stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES // 2**20} MiB")
    return content


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: it is not JSON, too large, or nested too deeply.
        OSError: it is missing or cannot be read.
    """
    try:
        return json.loads(read_small(file))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_yaml(file: Path) -> Any:
    """Return the content of a file of YAML 1.2; a tag of a Python object is an error.

    Raises:
        ValueError: it is not YAML, too large, or nested too deeply.
        OSError: it is missing or cannot be read.
    """
    return parse_yaml(read_small(file).decode())


def parse_yaml(text: str) -> Any:
    """Return the content of YAML 1.2; raises ValueError as `read_yaml` does."""
    # Imported here, because a model is loaded without it.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
