"""Tables of labels beside the images, as Hugging Face's imagefolder has them.

A table is `metadata.csv`, `metadata.jsonl` or `labels.csv`. Its column `file_name` is relative to the table's folder;
its columns `label` and `split` are optional.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from diffusion_core.counts import count_of
from diffusion_core.data.sources.item import Item
from diffusion_core.errors import UserError

TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl")
FILE, LABEL, SPLIT = "file_name", "label", "split"


def table_names(names: Iterable[str]) -> list[str]:
    """Return those names that are of tables."""
    return sorted(name for name in names if name.rpartition("/")[2] in TABLES)


def labelled(items: Sequence[Item], tables: Mapping[str, bytes], key: str) -> list[Item]:
    """Return the items with the labels and splits of the tables.

    Args:
        items: the images.
        tables: the bytes of each table, by its path in the source.
        key: the key and value of `ingest.source` that name the source, for messages.

    Raises:
        UserError: a table cannot be read, names files that are missing or twice, or leaves out images below its folder.
    """
    if not tables:
        return [*items]
    known = {item.path: item for item in items}
    told: dict[str, Item] = {}
    for name, content in tables.items():
        folder = PurePosixPath(name).parent
        missing = []
        for row in _rows(name, content, key):
            path = (folder / row[FILE]).as_posix()
            if path not in known:
                missing.append(path)
            elif path in told:
                raise UserError(f"{key}, where {name} or another table names {path!r} twice: leave one of the two out")
            else:
                told[path] = replace(known[path], label=row.get(LABEL) or None, split=row.get(SPLIT) or None)
        if missing:
            raise UserError(
                f"{key}, where {name} names {count_of(len(missing), 'missing file')}, as {missing[0]!r}: add them, or"
                " leave out their rows"
            )
    # The tables in the folder of an image and in those above it may name it; one must.
    names = {PurePosixPath(name).parent: name for name in tables}
    left: dict[str, list[str]] = {}
    for path in known:
        if path not in told and (above := next((each for each in PurePosixPath(path).parents if each in names), None)):
            left.setdefault(names[above], []).append(path)
    for name, paths in left.items():
        raise UserError(
            f"{key}, where {name} has no row of {count_of(len(paths), 'image')}, as {paths[0]!r}: add their rows"
        )
    return [told.get(item.path, item) for item in items]


def _rows(name: str, content: bytes, key: str) -> list[dict[str, str]]:
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".csv"):
            rows = [*csv.DictReader(io.StringIO(text), strict=True)]
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        if odd := next((row for row in rows if isinstance(row, dict) and FILE not in row), None):
            columns = ", ".join(map(str, odd))
            raise UserError(f"{key}, where {name} has no column {FILE} ({columns}): rename one, or add it")
        return [{column: _text(row[column]) for column in (FILE, LABEL, SPLIT) if _has(row, column)} for row in rows]
    except (ValueError, csv.Error, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{key}, where {name} is not a table with the column {FILE} ({error}): correct it") from None


def _has(row: Mapping[str, object], column: str) -> bool:
    return column == FILE or row.get(column) is not None


def _text(value: object) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{value!r} is neither text nor a whole number")
