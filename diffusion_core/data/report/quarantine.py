"""Examples of quarantined files: a picture of what is left of each, or its first bytes."""

import io
import multiprocessing
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image, ImageFile

from diffusion_core.data.formats import readable
from diffusion_core.data.manifest import ManifestRow
from diffusion_core.data.raw import RawFile
from diffusion_core.data.report.pictures import LARGEST_SIDE, address
from diffusion_core.data.report.statistics import pattern

MOST_REASONS = 10
EXAMPLES = 3
FIRST_BYTES = 48
# A decoder that takes longer, or more memory than these pixels need, is ended.
SECONDS = 1.0
MOST_PIXELS = 2**24


@dataclass(frozen=True)
class Example:
    """A quarantined file.

    Attributes:
        source: its path in the source.
        reason: why it was quarantined.
        size: its bytes.
        picture: what is left of it, as a `data:` address, or None.
        begins: its first bytes, as text with a dot for each that is not printable ASCII.
    """

    source: str
    reason: str
    size: int
    picture: str | None
    begins: str


@dataclass(frozen=True)
class Reason:
    """A reason, with N for each number, how many files have it, and some of them."""

    text: str
    count: int
    examples: list[Example]


def reasons(folder: Path, files: Sequence[RawFile], rows: Sequence[ManifestRow]) -> list[Reason]:
    """Return the most frequent reasons.

    Args:
        folder: data/raw.
        files: the files of the source.
        rows: the row of each file.
    """
    groups: dict[str, list[tuple[RawFile, ManifestRow]]] = defaultdict(list)
    for file, row in zip(files, rows, strict=True):
        if row.quarantined is not None:
            groups[pattern(row.quarantined)].append((file, row))
    ordered = sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0]))[:MOST_REASONS]
    return [
        Reason(text, len(group), [_example(folder, file, row) for file, row in group[:EXAMPLES]])
        for text, group in ordered
    ]


def _example(folder: Path, file: RawFile, row: ManifestRow) -> Example:
    content = file.read(folder)
    begins = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in content[:FIRST_BYTES])
    # Without a size in its header, nothing of it can be decoded.
    is_small = row.width is not None and row.height is not None and row.width * row.height <= MOST_PIXELS
    return Example(file.path, row.quarantined or "", file.size, _apart(content) if is_small else None, begins)


def _apart(content: bytes) -> str | None:
    """Decode what is left of an image in a process of its own, because such files can stop or end a decoder."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_send, args=(sender, content), daemon=True)
    process.start()
    sender.close()
    try:
        found = receiver.recv_bytes().decode() if receiver.poll(2 * SECONDS) else ""
    except EOFError:
        found = ""
    finally:
        process.kill()
        process.join()
        receiver.close()
    return found or None


def _send(sender: Connection, content: bytes) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with Image.open(io.BytesIO(content), formats=readable()) as image:
            image.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            small = image.convert("RGB")
        small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        sender.send_bytes(address(small).encode())
    except Exception:  # decoders raise nearly anything on damaged bytes
        sys.exit(0)
