"""Bytes that flip, and what `diffusion verify` says of them."""

import json
import os

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.stages import verify


def flip(file):
    """Flip a bit as a disk does: time and mode stay."""
    before, mode = file.stat(), file.stat().st_mode
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    file.chmod(mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def environment_of(folder):
    return Environment(tracking_uri=f"sqlite:///{folder}/mlflow.db", device="cpu")


def verified(project, repair=False):
    """Return the exit code, and the findings as JSON."""
    output = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", output.append)
        try:
            verify.run(environment_of(project), repair, as_json=True)
        except SystemExit as left:
            return left.code, json.loads(output[0])["findings"]
    return 0, json.loads(output[0])["findings"]


def entry(project, path):
    """The file in the cache of a file of the checkout."""
    (found,) = (each for each in project.glob(".dvc/cache/files/md5/*/*") if each.read_bytes() == path.read_bytes())
    return found
