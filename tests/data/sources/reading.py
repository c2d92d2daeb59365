"""What the tests of sources have in common: images, and a project that ingests them."""

import io
from pathlib import Path

import pytest
from PIL import Image

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import IngestSettings
from diffusion_core.data.raw import read_index
from diffusion_core.data.sources import stamps
from diffusion_core.stages import ingest

RAW = Path("data/raw")


def png(shade: int, side: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side), shade).save(file, "PNG")
    return file.getvalue()


def read(source) -> dict[str, bytes]:
    """Return the bytes of each image by its path, in the source's order."""
    items = list(source.items(Environment()))
    assert len({item.path for item in items}) == len(items)
    contents = list(source.contents(items, items, Path(".raw.parts"), Environment()))
    assert all(item.size in (None, len(content)) for item, content in zip(items, contents, strict=True))
    return {item.path: content for item, content in zip(items, contents, strict=True)}


def told(source) -> dict[str, tuple[str | None, str | None]]:
    """Return the label and the split of each image by its path."""
    return {item.path: (item.label, item.split) for item in source.items(Environment())}


def ingested(**source) -> dict[str, bytes]:
    """Ingest the source into the project of the working directory, and return its images."""
    ingest.run(IngestSettings.model_validate({"source": source}), Environment())
    return {file.path: file.read(RAW) for file in read_index(RAW)}


def any_date_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the dates of files that were written just now for certain."""
    monkeypatch.setattr(stamps, "CERTAIN", -(10**9))
