"""The version of a dataset, as it is recorded and shown."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from diffusion_core.data.dataset import ImageDataset
from diffusion_core.lineage.provenance import DVC_LOCK, LockedStage, dvc_hashes, locked_stages


@dataclass(frozen=True)
class DatasetVersion:
    """The version of a dataset.

    Attributes:
        name: name for display: that of its source, or the path of its folder.
        digest: sha256 of its content.
        md5: DVC's hash, or None if DVC did not make it.
        source: path of its folder.
        profile: counts of images and classes, size and channels, for display.
    """

    name: str
    digest: str
    md5: str | None
    source: str
    profile: dict[str, int | str] = field(default_factory=dict)


def dataset_version(folder: Path, dataset: ImageDataset) -> DatasetVersion:
    """Return the version of a dataset, whose folder is a DVC output of this project.

    Args:
        folder: its folder.
        dataset: its training images.
    """
    path, info = folder.as_posix(), dataset.info
    profile: dict[str, int | str] = {"images": info.count, "size": " x ".join(map(str, info.image_size))}
    for name in ("channels", "train", "validation", "test", "quarantined", "dropped"):
        profile[name] = getattr(info, name)
    if info.classes:
        pairs = zip(info.classes, dataset.class_counts, strict=True)
        profile |= {"classes": len(info.classes), "training_images": ", ".join(f"{one}: {n}" for one, n in pairs)}
    return DatasetVersion(_source_name(DVC_LOCK) or path, info.digest, dvc_hashes().get(path), path, profile)


def _source_name(lock: Path) -> str | None:
    """Return what people call the source of the images, by dvc.lock, or None if DVC has not ingested them."""
    ingest = locked_stages(lock).get("ingest", LockedStage())
    source: dict[str, str] = ingest.params.get("params.yaml", {}).get("ingest", {}).get("source", {})
    # Of an address, the last part of its path has no password.
    place = str(source.get("path") or source.get("url") or "")
    return source.get("name") or Path(urlsplit(place).path.rstrip("/")).stem or source.get("kind")
