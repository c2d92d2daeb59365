"""Train or validation, decided by an image's content and nothing else."""

from diffusion_core.data.manifest import Split


def split_of(sha256: str, validation_fraction: float) -> Split:
    """Return the split of the file whose bytes have this digest (hexadecimal).

    The digest's first 64 bits, read as a fraction of 1, are uniform on [0, 1): a file keeps its split whatever else
    comes in, its copies follow it, and a larger `validation_fraction` only adds to the validation split.
    """
    return "validation" if int(sha256[:16], 16) / 2**64 < validation_fraction else "train"
