"""The two files of a saved model, as bytes: what names a model needs no PyTorch."""

import hashlib
from pathlib import Path

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"


def model_digest(folder: Path) -> str:
    """Return the sha256 of a model's weights and description."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, DESCRIPTION):
        with (folder / name).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
