"""The installed package denoising-diffusion-pytorch, made to compute with given noises and in a given precision."""

import importlib
import sys
from contextlib import contextmanager
from unittest import mock

import torch

from tests.conformance import cases

MODULE = "denoising_diffusion_pytorch.denoising_diffusion_pytorch"


def load(path=None):
    """Import one version of the package, from `path` if it is given."""
    for name in [name for name in sys.modules if name.startswith("denoising_diffusion_pytorch")]:
        del sys.modules[name]
    if path:
        sys.path.insert(0, path)
    try:
        module = importlib.import_module(MODULE)
        learned = importlib.import_module("denoising_diffusion_pytorch.learned_gaussian_diffusion")
    finally:
        if path:
            sys.path.remove(path)
    return module, learned


def process(kind, network, dtype, **options):
    """Build the package's process with tables in `dtype`."""
    with mock.patch.object(torch, "float32", dtype):
        return kind(network, image_size=cases.SHAPE[2:], auto_normalize=False, **options)


@contextmanager
def noises(name, shape, dtype):
    """Answer the package's draws."""
    drawn = cases.replay(name, shape, dtype)
    with (
        mock.patch.object(torch, "randn", side_effect=lambda *_, **__: next(drawn)),
        mock.patch.object(torch, "randn_like", side_effect=lambda *_, **__: next(drawn)),
    ):
        yield
