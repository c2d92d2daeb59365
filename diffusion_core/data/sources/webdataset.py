"""Images in the tar files of WebDataset, each beside its label."""

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from diffusion_core.choices import Choice
from diffusion_core.data.sources.archive import Archive, archives_at, changed, check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.names import image_names, is_image, split_of_name, suffix_of, tell_left_out
from diffusion_core.data.sources.tar_file import entries
from diffusion_core.errors import UserError

# Of a label, which is a word, and of a sample's JSON.
MOST_LABEL_BYTES = 2**20
LABELS = ("cls", "json")


@dataclass(frozen=True)
class WebDataset(Choice):
    """Every sample of a tar file, or of all `*.tar` below a folder, in the layout of WebDataset.

    Files that follow each other with the same name up to the first dot are a sample: an image, and `<key>.cls` with its
    class or `<key>.json` with its `label`. The path of an image is `<tar>-<key>.<suffix>`. Where files are named for
    splits, as `train-0000.tar`, their images are in these. Files are never classes. Without labels, the folders in the
    names of samples are the classes, if there are any.

    Attributes:
        path: the file or folder; absolute, from `~`, or relative to the project's folder.
        image: the name after the first dot of the images, as `jpg`, where samples have several; null: the only one.
    """

    path: Path
    image: str | None = None
    kind: Literal["webdataset"] = "webdataset"

    def items(self, *_: object) -> list[Item]:
        """Return the images in the order of the files; the stamp of each is the file's date and its place.

        Raises:
            UserError: a file is missing, damaged or has no image, or a sample or an entry is refused.
        """
        archives, others = self._archives()
        tell_left_out(others, "files that are not *.tar")
        return WebDatasetImages(archives, self.image).items()

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield the bytes of each.

        Raises:
            UserError: a file is damaged or has changed.
        """
        return WebDatasetImages(self._archives()[0], self.image).contents(wanted)

    def _archives(self) -> tuple[list[Archive], Counter[str]]:
        return archives_at(f"ingest.source.path is {self.path}", self.path, ".tar")


@dataclass(frozen=True)
class _Member:
    """A file in a tar file, with its bytes if it is a label."""

    name: str
    key: str
    extension: str
    size: int
    offset: int
    content: bytes | None


@dataclass(frozen=True)
class WebDatasetImages:
    """The images in tar files of WebDataset, with the errors of `WebDataset`."""

    archives: Sequence[Archive]
    image: str | None = None

    def items(self) -> list[Item]:
        """Return the images in the order of the files."""
        items: list[Item] = []
        names: list[str] = []
        others, odd = Counter[str](), Counter[str]()
        for archive in self.archives:
            split = split_of_name(archive.name)
            for _, sample in groupby(_members(archive, odd), lambda member: member.key):
                members = list(sample)
                image = self._image_of(archive, members, others)
                if image is None:
                    others["labels without an image"] += sum(member.content is not None for member in members)
                else:
                    check_size(archive.key, image.name, image.size)
                    path = _path(archive, image.name)
                    label = _label(archive, members)
                    items.append(Item(path, image.size, archive.stamp(image.offset), label, split))
                    names.append(path)
        tell_left_out(odd, "entries that are not files")
        # Without those that are there no time.
        tell_left_out(+others, "files that are neither images nor their labels")
        # For its checks of names.
        image_names(names, self.archives[0].key)
        return items

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield the bytes of each."""
        left = iter(wanted)
        if (item := next(left, None)) is None:
            return
        for archive in self.archives:
            # A file without wanted images is not read.
            if not _base(item.path).startswith(f"{archive.name}-"):
                continue
            for entry in entries(archive, Counter()):
                if _path(archive, entry.name) == item.path and entry.size == item.size:
                    yield entry.read()
                    if (item := next(left, None)) is None:
                        return
                    if not _base(item.path).startswith(f"{archive.name}-"):
                        break
        raise changed(self.archives[0].key)

    def _image_of(self, archive: Archive, members: Iterable[_Member], others: Counter[str]) -> _Member | None:
        """Return the image of a sample, and count what is neither an image nor a label."""
        images = []
        for member in members:
            if is_image(member.name) and (self.image is None or self.image.lower() == member.extension):
                images.append(member)
            elif member.extension not in LABELS:
                others[suffix_of(member.name) or "without suffix"] += 1
        if len(images) > 1:
            raise UserError(
                f"{archive.key}, where the sample {images[0].key} has the images"
                f" {' and '.join(image.extension for image in images)}: say by ingest.source.image which to take"
            )
        return images[0] if images else None


def _members(archive: Archive, odd: Counter[str]) -> Iterator[_Member]:
    for entry in entries(archive, odd):
        folder, slash, base = entry.name.rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        content = None
        if extension in LABELS:
            if entry.size > MOST_LABEL_BYTES:
                raise UserError(f"{archive.key}, which has {entry.name!r} of {entry.size:,} bytes: take it out")
            content = entry.read()
        yield _Member(entry.name, f"{folder}{slash}{stem}", extension, entry.size, entry.offset, content)


def _path(archive: Archive, name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{archive.name}-{base}"


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _label(archive: Archive, members: Iterable[_Member]) -> str | None:
    """Return the class of a sample: of its `.cls`, else of its `.json`."""
    contents = {member.extension: (member.name, member.content) for member in members if member.content is not None}
    for extension in LABELS:
        if extension in contents:
            name, content = contents[extension]
            try:
                label = _text_of(content or b"", is_json=extension == "json")
            except (ValueError, RecursionError):
                raise UserError(f"{archive.key}, where {name} is not a label: write a word or a whole number") from None
            if label is not None:
                return label
    return None


def _text_of(content: bytes, *, is_json: bool) -> str | None:
    text = content.decode()
    if not is_json:
        return text.strip() or None
    value = json.loads(text)
    label = value.get("label") if isinstance(value, dict) else None
    if label is None:
        return None
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ValueError(f"{label!r} is neither text nor a whole number")
    return str(label) or None
