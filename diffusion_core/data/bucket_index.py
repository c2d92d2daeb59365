"""What lies in data/raw of which bucket: `.s3.json`, which is versioned with the images.

A fresh clone that has pulled the images thereby knows as much of the bucket as the machine that fetched them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

INDEX = ".s3.json"


@dataclass(frozen=True)
class Entry:
    """One object as it was fetched; `size` in bytes."""

    etag: str
    size: int
    sha256: str


def read_index(folder: Path, url: str) -> dict[str, Entry]:
    """Return the entries by the files' paths below `folder`; none where they are of another address or damaged."""
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return {path: Entry(**entry) for path, entry in content["objects"].items()} if content["url"] == url else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Everything is fetched anew, and this file is written anew.
        return {}


def write_index(folder: Path, url: str, entries: Mapping[str, Entry]) -> None:
    """Write the entries, alike for the same ones."""
    content = {"url": url, "objects": {path: asdict(entries[path]) for path in sorted(entries)}}
    (folder / INDEX).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
