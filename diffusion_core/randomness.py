"""Generators made of what a draw is for, so that no draw depends on those before it and no state need be stored."""

import hashlib

import torch


def derive_seed(*key: int | str) -> int:
    """Return a 63-bit seed that is a function of `key` alone, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator for the draws named by `key`, e.g. (seed, step, "noise")."""
    return torch.Generator(device=device).manual_seed(derive_seed(*key))
