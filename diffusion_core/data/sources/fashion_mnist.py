"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 70,000 gray pictures of clothes of 28 x 28 pixels in 10 classes."""

import gzip
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from diffusion_core.data.sources.archive import Archive, check_size
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.png import WRITTEN_BY, as_png
from diffusion_core.data.sources.published import PublishedFile

ADDRESS = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
# The hashes are those that Hugging Face and TensorFlow Datasets have.
FILES = {
    "train-images": PublishedFile(
        f"{ADDRESS}/train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "train-labels": PublishedFile(
        f"{ADDRESS}/train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "test-images": PublishedFile(
        f"{ADDRESS}/t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "test-labels": PublishedFile(
        f"{ADDRESS}/t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
}
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
# How a file of 8-bit numbers begins, before its number of dimensions.
MAGIC = b"\0\0\x08"


@dataclass(frozen=True)
class FashionMnist:
    """The images in the files of Fashion-MNIST."""

    archives: Mapping[str, Archive]

    def items(self) -> list[Item]:
        """Return `<split>/<class>/<index in the split>.png` for each."""
        items = []
        for split in ("train", "test"):
            archive = self.archives[f"{split}-images"]
            for index, label in enumerate(self._array(f"{split}-labels", dimensions=1).tolist()):
                stamp = archive.stamp(f"{index} {WRITTEN_BY}")
                name = CLASSES[label]
                items.append(Item(f"{split}/{name}/{index:05d}.png", None, stamp, name, split))
        return items

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield each as a PNG."""
        for split, group in groupby(wanted, lambda item: item.split):
            pixels = self._array(f"{split}-images", dimensions=3)
            for item in group:
                yield as_png(pixels[int(item.path.rpartition("/")[2].removesuffix(".png"))])

    def _array(self, name: str, dimensions: int) -> npt.NDArray[np.uint8]:
        archive = self.archives[name]
        with archive.opened(ValueError) as file, gzip.GzipFile(fileobj=file) as stream:
            if stream.read(4) != MAGIC + bytes([dimensions]):
                raise ValueError("it has another format")
            shape = [int.from_bytes(stream.read(4), "big") for _ in range(dimensions)]
            size = math.prod(shape)
            check_size(archive.key, name, size)
            # To the end, where the checksum is compared.
            content = stream.read(size + 1)
            if len(content) != size:
                raise ValueError("it has not as many bytes as its header says")
            numbers = np.frombuffer(content, np.uint8).reshape(shape)
            if dimensions == 1 and size and numbers.max() >= len(CLASSES):
                raise ValueError("it has a class without name")
        return numbers
