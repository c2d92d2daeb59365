"""A queue on disk of what a tracking store is to be sent, so that no store can delay or lose it.

An entry is a line of JSON in `entries.jsonl`, flushed to disk before `append` returns. `sent` has the number of bytes
that the store has acknowledged. Images are files beside it.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusion_core.arrays import save_array
from diffusion_core.files import exclusive_lock, flush, naming, write_whole
from diffusion_core.training.checkpoint import LOCK

# Its name in the folder of a training's checkpoints.
OUTBOX = "outbox"
ENTRIES, SENT, KEY, RUN, IMAGES, SENDING = "entries.jsonl", "sent", "key", "run", "images", ".sending"

Entry = dict[str, Any]


class Outbox:
    """The queue of one training, in a folder of its own.

    Several threads may append and read. One process at a time may send: see `sending`.

    Args:
        folder: the folder; created if missing.

    Attributes:
        folder: the folder.
        key: a random name of the training's run, kept in the folder. The store has it as the tag `run_key`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / KEY).exists():
            write_whole(folder / KEY, uuid.uuid4().hex)
        self.key = (folder / KEY).read_text(encoding="utf-8")

    @staticmethod
    def all(root: Path) -> list["Outbox"]:
        """Return the queues of the trainings in a folder of checkpoints."""
        return [Outbox(key.parent) for key in sorted(root.glob(f"*/{OUTBOX}/{KEY}"))]

    def sending(self) -> AbstractContextManager[None]:
        """Return a lock for the block that sends; raises `Locked` if another process sends."""
        return exclusive_lock(self.folder / SENDING)

    def of_training(self) -> AbstractContextManager[None]:
        """Return the lock of the checkpoints' folder; raises `Locked` while the training runs."""
        return exclusive_lock(self.folder.parent / LOCK)

    def append(self, entry: Entry) -> None:
        """Add an entry and flush it to disk; after an error the file has none of it."""
        line = json.dumps(entry).encode() + b"\n"
        with self._lock, naming(self.folder / ENTRIES), (self.folder / ENTRIES).open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                # Readers ignore a line without its end.
                file.truncate(before)
                raise
            os.fsync(file.fileno())

    def append_image(self, image: npt.NDArray[np.uint8], entry: Entry) -> None:
        """Add an image, uint8 (H, W, C), and its entry, which gets the name of its file as `file`."""
        (self.folder / IMAGES).mkdir(exist_ok=True)
        file = self.folder / IMAGES / f"{uuid.uuid4().hex}.npy"
        try:
            save_array(file, image)
            flush(file)
        except OSError:
            file.unlink(missing_ok=True)
            raise
        flush(file.parent)
        self.append({**entry, "file": file.name})

    def image(self, entry: Entry) -> npt.NDArray[np.uint8]:
        """Return the image of an entry."""
        image: npt.NDArray[np.uint8] = np.load(self.folder / IMAGES / entry["file"])
        return image

    def unsent(self) -> Iterator[tuple[int, Entry]]:
        """Yield the entries that were not acknowledged, each with the number to acknowledge it by."""
        yield from self._read(self._sent())

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, sent or not."""
        return (entry for _, entry in self._read(0))

    def acknowledge(self, number: int) -> None:
        """Keep that the store has all entries up to the one with this number in `unsent`."""
        write_whole(self.folder / SENT, str(number))

    def is_empty(self) -> bool:
        """Return whether the store has acknowledged all entries."""
        return next(self.unsent(), None) is None

    @property
    def run_id(self) -> str | None:
        """The store's id of the run, or None while the store has not made it."""
        file = self.folder / RUN
        return file.read_text(encoding="utf-8") if file.exists() else None

    def set_run_id(self, run_id: str) -> None:
        """Keep the store's id of the run."""
        write_whole(self.folder / RUN, run_id)

    def clear_if_done(self) -> bool:
        """Remove the entries and images if the run has ended and the store has all; return whether that is so."""
        last = None
        for entry in self.entries():
            last = entry["kind"]
        if last not in (None, "end") or not self.is_empty():
            return False
        # A thread that sends meanwhile would see entries that nothing says are sent.
        with exclusive_lock(self.folder / SENDING, wait=True):
            self.clear()
        return True

    def clear(self) -> None:
        """Remove all entries and images; key and run stay. Only within `sending`."""
        # In this order: what is sent again is recognised, and what is skipped would be lost.
        (self.folder / SENT).unlink(missing_ok=True)
        (self.folder / ENTRIES).unlink(missing_ok=True)
        shutil.rmtree(self.folder / IMAGES, ignore_errors=True)

    def _sent(self) -> int:
        file = self.folder / SENT
        return int(file.read_text(encoding="utf-8")) if file.exists() else 0

    def _read(self, start: int) -> Iterator[tuple[int, Entry]]:
        file = self.folder / ENTRIES
        if not file.exists():
            return
        with file.open("rb") as stream:
            stream.seek(start)
            end = start
            for line in stream:
                if not line.endswith(b"\n"):
                    # Being written.
                    return
                end += len(line)
                yield end, json.loads(line)

    def cut_torn_line(self) -> None:
        """Remove the rest of a line whose writer was killed; only for the process that has the training's lock."""
        file = self.folder / ENTRIES
        if not file.exists():
            return
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)
