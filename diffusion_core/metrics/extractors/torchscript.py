"""Any feature network as a TorchScript file, for example the Inception-v3 of the published FID."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator
from torch import nn

from diffusion_core.choices import Choice
from diffusion_core.config.environment import Environment
from diffusion_core.data.sources.web import WebFile, check_sha256
from diffusion_core.errors import UserError
from diffusion_core.files import expanded, sha256_of
from diffusion_core.metrics.extractors.resized import Resized


def check_name(name: str) -> str:
    """Return the name.

    Raises:
        ValueError: it is not a word of lower-case letters and digits.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*", name):
        raise ValueError(f"name is {name!r}; write a word of lower-case letters and digits")
    return name


@dataclass(frozen=True)
class TorchScript(Choice):
    """A TorchScript file, which is a program: its sha256 says that it is the one that was meant.

    The defaults are those of clean-fid for `inception-2015-12-05.pt` of StyleGAN, whose Fréchet distance is FID.

    Attributes:
        file: its path, or its address with `https://`, which is fetched once.
        sha256: of its bytes.
        name: what the names of its metrics begin with.
        size: height and width that the network takes.
        mean: subtracted from each channel, of values in [0, 255].
        std: what each channel is divided by then.
        submodule: what is called; null for the whole.
    """

    is_published: ClassVar[bool] = True

    file: str
    sha256: Annotated[str, AfterValidator(check_sha256)]
    name: Annotated[str, AfterValidator(check_name)] = "inception"
    size: int = 299
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    submodule: str | None = "layers"
    kind: Literal["torchscript"] = "torchscript"

    def load(self, environment: Environment) -> Resized:
        """Return the network, on the CPU.

        Raises:
            UserError: there is no such file, it has another sha256, or it is not TorchScript that takes such images.
            Unavailable: the server of the file does not answer.
        """
        file, key = self._path(environment), f"file of torchscript in evaluate.extractors is {self.file}"
        try:
            network: nn.Module = torch.jit.load(str(file), map_location="cpu")
            return Resized(_part(network, self.submodule), self.size, self.mean, self.std)
        except (RuntimeError, AttributeError) as error:
            raise UserError(
                f"{key}, which is not TorchScript that takes images of {self.size} x {self.size}"
                f" ({str(error).strip().splitlines()[-1]}): correct size and submodule, or name another file"
            ) from error

    def _path(self, environment: Environment) -> Path:
        key = f"file of torchscript in evaluate.extractors is {self.file}"
        correct = "correct its sha256 if you trust this file, else the address"
        if self.file.startswith(("https://", "http://")):
            return WebFile(key, self.file, self.sha256.lower(), correct).fetched(environment)
        file = expanded(key, Path(self.file))
        if not file.is_file():
            raise UserError(f"{key}, which does not exist: correct its path")
        if (found := sha256_of(file)) != self.sha256.lower():
            raise UserError(f"{key}, whose sha256 is {found}, where {self.sha256} is expected: {correct}")
        return file


def _part(network: nn.Module, name: str | None) -> nn.Module:
    # `get_submodule` does not know TorchScript's modules.
    for each in name.split(".") if name else ():
        network = getattr(network, each)
    return network.eval()
