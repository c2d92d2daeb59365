"""CIFAR-10 (Krizhevsky 2009): 60,000 photographs of 32 x 32 pixels in 10 classes."""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_core.data.sources.archive import Archive, check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.png import WRITTEN_BY, as_png
from diffusion_core.data.sources.published import PublishedFile
from diffusion_core.data.sources.tar_file import entries
from diffusion_core.errors import UserError

# The version without pickles. The hash is the one that TensorFlow Datasets has.
FILES = {
    "images": PublishedFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    )
}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
SIDE = 32
# Of an image: its class, and its pixels by channel.
RECORD_BYTES = 1 + 3 * SIDE * SIDE


@dataclass(frozen=True)
class Cifar10:
    """The images in the files of CIFAR-10."""

    archives: Mapping[str, Archive]

    def items(self) -> list[Item]:
        """Return `<split>/<class>/<batch>-<index in it>.png` for each."""
        archive = self.archives["images"]
        items = []
        for batch, content in self._batches(SPLITS):
            for index, label in enumerate(content[::RECORD_BYTES]):
                if label >= len(CLASSES):
                    raise UserError(
                        f"{archive.key}, where {batch} has the class {label}: remove the file and try again"
                    )
                split, name = SPLITS[batch], CLASSES[label]
                stamp = archive.stamp(f"{batch} {index} {WRITTEN_BY}")
                items.append(Item(f"{split}/{name}/{batch}-{index:05d}.png", None, stamp, name, split))
        return items

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield each as a PNG."""
        indices: dict[str, list[int]] = {}
        for item in wanted:
            batch, _, number = item.path.rpartition("/")[2].removesuffix(".png").rpartition("-")
            indices.setdefault(batch, []).append(int(number))
        for batch, content in self._batches(indices):
            for index in indices[batch]:
                record = np.frombuffer(content, np.uint8, RECORD_BYTES, index * RECORD_BYTES)
                yield as_png(np.ascontiguousarray(record[1:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)))

    def _batches(self, wanted: Mapping[str, object]) -> Iterator[tuple[str, bytes]]:
        archive = self.archives["images"]
        left = {*wanted}
        for entry in entries(archive, Counter()) if left else ():
            batch = entry.name.rpartition("/")[2].removesuffix(".bin")
            if batch in left:
                check_size(archive.key, entry.name, entry.size)
                if entry.size % RECORD_BYTES:
                    raise UserError(f"{archive.key}, where {entry.name} is cut off: remove the file and try again")
                yield batch, entry.read()
                left.remove(batch)
        if left:
            raise UserError(f"{archive.key}, which lacks {', '.join(sorted(left))}: remove the file and try again")
