"""Datasets of images that their publishers have on the web, by name."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion_core.choices import Choice
from diffusion_core.config.environment import Environment
from diffusion_core.data.sources import cifar10, fashion_mnist, oxford_flowers
from diffusion_core.data.sources.archive import Archive
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.published import Images, Open, PublishedFile
from diffusion_core.data.sources.web import WebFile

DATASETS: Mapping[str, tuple[Mapping[str, PublishedFile], Open]] = {
    "cifar10": (cifar10.FILES, cifar10.Cifar10),
    "fashion_mnist": (fashion_mnist.FILES, fashion_mnist.FashionMnist),
    "oxford_flowers": (oxford_flowers.FILES, oxford_flowers.OxfordFlowers),
}


@dataclass(frozen=True)
class Dataset(Choice):
    """The images of a dataset with their classes and splits, from its publishers' own address.

    Its files are fetched once, into the folder that `Url` uses, and have known hashes.

    Attributes:
        name: of the dataset.
    """

    name: Literal["cifar10", "fashion_mnist", "oxford_flowers"]
    kind: Literal["dataset"] = "dataset"

    def items(self, environment: Environment) -> list[Item]:
        """Return the images, after the files were fetched if they were not there.

        Raises:
            UserError: the publishers have replaced a file.
        """
        return self._images(environment).items()

    def contents(
        self, wanted: Sequence[Item], _items: Sequence[Item], _downloads: Path, environment: Environment
    ) -> Generator[bytes, None, None]:
        """Yield the bytes of each.

        Raises:
            UserError: a file is damaged.
        """
        return self._images(environment).contents(wanted)

    def _images(self, environment: Environment) -> Images:
        files, opened = DATASETS[self.name]
        correct = "its publishers have replaced it, so find the old one and name its address by `kind: url`"
        archives = {}
        for name, each in files.items():
            key = f"ingest.source.name is {self.name}, in it {each.url}"
            file = WebFile(key, each.url, each.sha256, correct).fetched(environment)
            archives[name] = Archive(key, file, name, each.sha256)
        return opened(archives)
