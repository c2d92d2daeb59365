"""Counts in sentences: `1 image`, `2,000 images`."""


def count_of(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s in the plural."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
