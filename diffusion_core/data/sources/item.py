"""What a source says of an image before its bytes are read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """An image of a source.

    Attributes:
        path: its path in the source, with `/` between its parts.
        size: bytes, or None if it is not known before they are read.
        stamp: text that changes whenever the bytes do, as a date or an ETag; None if nothing shows a change.
        label: name of its class, where the source has a table of them; else its folders say it.
        split: name of its split, where the source has a table of them; else its folders say it.
    """

    path: str
    size: int | None
    stamp: str | None
    label: str | None = None
    split: str | None = None
