"""Random generators seeded by purpose, so that random numbers are independent of earlier ones and need no state."""

import hashlib

import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that is a function of `key` alone, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator seeded by `key`, for example (seed, step, "noise")."""
    return torch.Generator(device=device).manual_seed(derive_seed(*key))
