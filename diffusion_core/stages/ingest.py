"""Bring the images, as they are, into data/raw."""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.counts import count_of
from diffusion_core.data.raw import PackWriter, RawFile, packs_to_keep, read_index, whole_packs, write_index
from diffusion_core.data.sources import Source
from diffusion_core.data.sources.item import Item
from diffusion_core.errors import UserError
from diffusion_core.files import link, replaced
from diffusion_core.progress import Progress
from diffusion_core.stages.paths import RAW


def run(ingest: IngestSettings, environment: Environment) -> None:
    """Replace `data/raw` by the current images of the source; after an error it does not change.

    Images whose stamp is the one in the index are not read again.

    Raises:
        UserError: the source cannot be read, has no image, or has a name that is not UTF-8.
    """
    downloads = environment.downloads or RAW.with_name(".raw.parts")
    source: Source = ingest.source
    # Another folder may have another file with the same path, size and date.
    origin = hashlib.sha256(repr(source).encode()).hexdigest()[:16]
    items = source.items(environment)
    _check_texts(items)
    known = _known()
    same = {
        item.path: _labelled(known[item.path], item)
        for item in items
        if _is_same(_of(origin, item), known.get(item.path))
    }
    new = [item for item in items if item.path not in same]
    print(f"ingest: {len(new):,} of {len(items):,} images are new", flush=True)
    packs = packs_to_keep(RAW, same.values(), grows=bool(new))
    kept = [file for file in same.values() if file.pack in packs]
    with replaced(RAW) as folder, closing(source.contents(new, items, downloads, environment)) as contents:
        for pack in packs:
            link(RAW / pack, folder / pack)
        with PackWriter(folder, (file for file in known.values() if file.pack in packs)) as writer:
            with Progress("ingest", len(items), "images") as progress:
                for item in items:
                    if (file := same.get(item.path)) is None:
                        writer.add(_of(origin, item), next(contents))
                    elif file.pack not in packs:
                        writer.add(_of(origin, item), file.read(RAW))
                    progress.add(1)
            # What the source does after its last image.
            next(contents, None)
            write_index(folder, [*kept, *writer.close()])
    # Removed only after success, so that an error loses no downloads.
    if environment.downloads is None and downloads.exists():
        shutil.rmtree(downloads)
    print(f"ingest: {count_of(len(items), 'image')} in {RAW}")


def _check_texts(items: Sequence[Item]) -> None:
    """Refuse a name that is not UTF-8, which no index can hold."""
    for item in items:
        for kind, text in (("path", item.path), ("label", item.label or ""), ("split", item.split or "")):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"ingest.source has the {kind} {text!r} of {item.path!r}, which is not UTF-8: rename it"
                ) from None


def _of(origin: str, item: Item) -> Item:
    return replace(item, stamp=None if item.stamp is None else f"{origin} {item.stamp}")


def _labelled(file: RawFile, item: Item) -> RawFile:
    """Return the image with its present label and split, which a table may have changed."""
    if (file.label, file.split) == (item.label, item.split):
        return file
    return replace(file, label=item.label, split=item.split)


def _known() -> dict[str, RawFile]:
    """Return the images of data/raw by path, without those whose pack is not whole."""
    try:
        files = read_index(RAW)
    except UserError:
        # All is read again, and the index is written again.
        return {}
    packs = whole_packs(RAW, files)
    return {file.path: file for file in files if file.pack in packs}


def _is_same(item: Item, known: RawFile | None) -> bool:
    return (
        known is not None and item.stamp is not None and item.stamp == known.stamp and item.size in (None, known.size)
    )
