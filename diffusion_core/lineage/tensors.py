"""Writes tensors to a file, with errors of the disk as Python has them, and reads back what was written."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_core.files import read_differently

# Bytes that are read at once, into memory that is used again: new memory costs more than reading does.
READ_BYTES = 2**22


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors to a safetensors file, which others may read as the umask says.

    Raises:
        OSError: the disk is full or refuses; safetensors itself raises an error of its own, without the path.
    """
    # safetensors makes a file that its owner alone may read, whatever the umask says.
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        file.chmod(mode)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from None


def read_back(tensors: Mapping[str, Tensor], file: Path) -> str:
    """Compare a safetensors file with the tensors that were written to it, and return its sha256.

    The format: eight bytes with the header's length, the header as JSON, and each tensor's bytes where it says. The
    kernel may answer from its cache, which has what the disk was given.

    Raises:
        OSError: they differ, or the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    try:
        described = {name: (each.dtype, each.shape) for name, each in load_file(file).items()}
        if described != {name: (each.dtype, each.shape) for name, each in tensors.items()}:
            raise ValueError("other tensors")
        with file.open("rb") as stream:
            length = stream.read(8)
            text = stream.read(int.from_bytes(length, "little"))
            digest.update(length + text)
            places = {name: place["data_offsets"][0] for name, place in json.loads(text).items()}
            for name in sorted(places, key=lambda each: (places[each], tensors[each].nbytes)):
                written = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                for start in range(0, len(written), READ_BYTES):
                    expected = written[start : start + READ_BYTES]
                    read = buffer[: stream.readinto(buffer[: len(expected)])]
                    if not np.array_equal(np.frombuffer(read, np.uint8), expected):
                        raise ValueError(f"{name} differs")
                    digest.update(read)
            if stream.read(1):
                raise ValueError("more bytes")
    except (SafetensorError, ValueError):
        raise read_differently(file) from None
    return digest.hexdigest()
