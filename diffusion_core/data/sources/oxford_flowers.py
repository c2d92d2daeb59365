"""Oxford's 102 flowers (Nilsback and Zisserman 2008): 8,189 photographs of about 500 x 600 pixels in 102 classes."""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from diffusion_core.data.sources.archive import Archive
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.published import PublishedFile
from diffusion_core.data.sources.tar import TarImages

ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
# The hashes are those that TensorFlow Datasets has.
FILES = {
    "images": PublishedFile(
        f"{ADDRESS}/102flowers.tgz", "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246"
    ),
    "labels": PublishedFile(
        f"{ADDRESS}/imagelabels.mat", "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"
    ),
    "splits": PublishedFile(f"{ADDRESS}/setid.mat", "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
}
SPLITS = {"trnid": "train", "valid": "validation", "tstid": "test"}
IMAGE = re.compile(r"(?P<folder>.*/)?(?P<name>image_(?P<number>\d{5})\.jpg)")
FOLDER = "jpg/"


@dataclass(frozen=True)
class OxfordFlowers:
    """The images in the files of Oxford's flowers. The classes have numbers, because the files have no names."""

    archives: Mapping[str, Archive]

    def items(self) -> list[Item]:
        """Return `<split>/<class>/image_<number>.jpg` for each."""
        labels = [int(label) for label in self._numbers("labels", "labels")]
        splits = {number: split for key, split in SPLITS.items() for number in self._numbers("splits", key)}
        items = []
        with self.archives["labels"].opened(ValueError, KeyError):
            for item in TarImages(self.archives["images"]).items():
                found = IMAGE.fullmatch(item.path)
                number = int(found["number"]) if found else 0
                if found is None or found["folder"] != FOLDER or number > len(labels) or number not in splits:
                    raise ValueError(f"it has no label or split of {item.path}")
                label, split = f"{labels[number - 1]:03d}", splits[number]
                items.append(replace(item, path=f"{split}/{label}/{found['name']}", label=label, split=split))
        return items

    def contents(self, wanted: Sequence[Item]) -> Generator[bytes, None, None]:
        """Yield the bytes of each."""
        original = [replace(item, path=f"{FOLDER}{item.path.rpartition('/')[2]}") for item in wanted]
        return TarImages(self.archives["images"]).contents(original)

    def _numbers(self, name: str, key: str) -> list[int]:
        # Imported here, because only this source needs it.
        from scipy.io import loadmat

        with self.archives[name].opened(Exception) as file:
            return [int(number) for number in loadmat(file)[key].ravel().tolist()]
