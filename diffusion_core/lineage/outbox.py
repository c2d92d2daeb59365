"""A queue on disk of what a tracking store is to be sent, so that no store can delay or lose it.

An entry is a line of JSON in `entries.jsonl`, flushed to disk before `append` returns. `sent` has the number of bytes
that the store has acknowledged. Images are files beside it. `store` names the only store that gets the entries.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from diffusion_core.arrays import save_array
from diffusion_core.data.shards import read_array
from diffusion_core.errors import Unavailable
from diffusion_core.files import flush, naming, write_whole
from diffusion_core.lineage.checkpoints import LOCK, training_folders
from diffusion_core.lineage.entries import Entry, parse
from diffusion_core.lineage.queue_errors import DamagedQueue, QueueError, accessing
from diffusion_core.locks import Locked, exclusive_lock

# Its name in the folder of a training's checkpoints.
OUTBOX = "outbox"
ENTRIES, SENT, KEY, RUN, IMAGES, SENDING = "entries.jsonl", "sent", "key", "run", "images", ".sending"
STORE, STEPS = "store", "steps"

# Seconds after which a process that sends has noticed that there is nothing left.
LONGEST_CALL = 10.0

_STEPS = TypeAdapter(dict[str, int])


class Outbox:
    """The queue of one training, in a folder of its own.

    Several threads may append and read. One process at a time may send: see `sending`.

    Args:
        folder: the folder; created if missing.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / KEY).exists():
            write_whole(folder / KEY, uuid.uuid4().hex)

    @property
    def key(self) -> str:
        """A random name of the training's run, kept in the folder. The store has it as the tag `run_key`.

        It is read each time, because a training with another budget puts a new queue in the place of this one.

        Raises:
            DamagedQueue: the file is damaged.
        """
        return self._text(KEY, r"[0-9a-f]{32}")

    @staticmethod
    def of(folder: Path) -> list["Outbox"]:
        """Return the queues in a training's folder: that of its run, and those of runs with other budgets before."""
        return [Outbox(key.parent) for key in sorted(folder.glob(f"{OUTBOX}*/{KEY}"))]

    @staticmethod
    def all(root: Path) -> list["Outbox"]:
        """Return the queues of the trainings in a folder of checkpoints."""
        return [outbox for folder in training_folders(root) for outbox in Outbox.of(folder)]

    @property
    def store(self) -> str | None:
        """The name of the store that gets the entries, or None for any.

        Raises:
            DamagedQueue: the file is damaged.
        """
        return self._text(STORE, r"[^\x00-\x1f\x7f]{1,4096}") if (self.folder / STORE).exists() else None

    def is_for(self, store: str) -> bool:
        """Return whether a store may get the entries."""
        return self.store in (None, store)

    def set_store(self, store: str) -> None:
        """Keep the name of the store that gets the entries; another store than before gets all of them again.

        Raises:
            Unavailable: another process is sending the queue to the store before, which would acknowledge it again.
        """
        if self.store == store:
            return
        try:
            with self.sending():
                if not self.is_for(store):
                    (self.folder / SENT).unlink(missing_ok=True)
                write_whole(self.folder / STORE, store)
        except Locked:
            raise Unavailable(
                f"another process sends what waits in {self.folder} to {self.store}: wait until it has ended, or name"
                " that store in DIFFUSION_TRACKING_URI and DIFFUSION_EXPERIMENT"
            ) from None

    @contextmanager
    def sending(self, seconds: float = 0.0) -> Iterator[None]:
        """Lock the queue for the block that sends; raises `Locked` if another process sends all these seconds."""
        with ExitStack() as held:
            with accessing(self.folder):
                held.enter_context(exclusive_lock(self.folder / SENDING, seconds=seconds))
            yield

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
        """Return the image of an entry.

        Raises:
            DamagedQueue: its file is missing or not an image.
        """
        file = self.folder / IMAGES / entry["file"]
        with accessing(self.folder):
            try:
                image: npt.NDArray[np.uint8] = read_array(file)
                if image.dtype != np.uint8 or image.ndim not in (2, 3):
                    raise ValueError(f"it holds {image.dtype} {image.shape}")
            except (FileNotFoundError, ValueError) as error:
                raise self._damaged(file, error) from None
        return image

    def unsent(self) -> Iterator[tuple[int, Entry]]:
        """Yield the entries that were not acknowledged, each with the number to acknowledge it by.

        Raises:
            DamagedQueue: an entry is damaged.
        """
        yield from self._read(self._sent())

    def count_unsent(self) -> int:
        """Return the number of entries that were not acknowledged."""
        return sum(1 for _ in self.unsent())

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, sent or not."""
        return (entry for _, entry in self._read(0))

    def acknowledge(self, number: int) -> None:
        """Keep that the store has all entries up to the one with this number in `unsent`."""
        with accessing(self.folder):
            write_whole(self.folder / SENT, str(number))

    def is_empty(self) -> bool:
        """Return whether the store has acknowledged all entries; a queue that cannot be read is not empty."""
        try:
            return next(self.unsent(), None) is None
        except QueueError:
            return False

    def last_kind(self) -> str | None:
        """Return the kind of the last entry, sent or not."""
        kind = None
        for entry in self.entries():
            kind = entry["kind"]
        return kind

    def last_steps(self) -> dict[str, int]:
        """Return the last step of each metric among the entries, sent or not."""
        steps: dict[str, int] = {}
        for entry in self.entries():
            if entry["kind"] == "metrics":
                steps |= dict.fromkeys(entry["values"], entry["step"])
        return steps

    def cleared_steps(self) -> dict[str, int]:
        """Return the last step of each metric among the entries that `clear` has removed.

        Raises:
            DamagedQueue: the file is damaged.
        """
        file = self.folder / STEPS
        try:
            return _STEPS.validate_json(file.read_bytes()) if file.exists() else {}
        except ValidationError as error:
            raise self._damaged(file, error.errors()[0]["msg"]) from None

    @property
    def run_id(self) -> str | None:
        """The store's id of the run, or None while the store has not made it."""
        return self._text(RUN, r"\w+") if (self.folder / RUN).exists() else None

    def set_run_id(self, run_id: str) -> None:
        """Keep the store's id of the run."""
        with accessing(self.folder):
            write_whole(self.folder / RUN, run_id)

    def is_done(self) -> bool:
        """Return whether the run has ended and the store has all entries."""
        return self.last_kind() in (None, "end") and self.is_empty()

    def clear_if_done(self) -> bool:
        """Clear the queue if the run is done, and return whether it did; only within `of_training`."""
        if self.is_done():
            # A thread that sends meanwhile would see entries that nothing says are sent.
            with suppress(Locked), self.sending(LONGEST_CALL):
                self.clear()
                return True
        return False

    def clear(self) -> None:
        """Remove all entries and images; key, run, store and last steps stay.

        Only within `sending` and `of_training`: a training that appends meanwhile would lose that.
        """
        if steps := self.last_steps():
            known = self.cleared_steps()
            steps = {name: max(step, known.get(name, step)) for name, step in steps.items()}
            write_whole(self.folder / STEPS, json.dumps(known | steps))
        # In this order: what is sent again is recognised, and what is skipped would be lost.
        (self.folder / SENT).unlink(missing_ok=True)
        (self.folder / ENTRIES).unlink(missing_ok=True)
        shutil.rmtree(self.folder / IMAGES, ignore_errors=True)

    def _sent(self) -> int:
        return int(self._text(SENT, r"\d{1,18}")) if (self.folder / SENT).exists() else 0

    def _text(self, name: str, pattern: str) -> str:
        with accessing(self.folder):
            text = (self.folder / name).read_bytes().decode(errors="replace")
        if not re.fullmatch(pattern, text):
            raise self._damaged(self.folder / name, "it has other characters")
        return text

    def _damaged(self, file: Path, problem: object) -> DamagedQueue:
        return DamagedQueue(
            f"{file} is damaged ({problem}): remove {self.folder}; what waits there for the tracking store is lost"
        )

    def _read(self, start: int) -> Iterator[tuple[int, Entry]]:
        file = self.folder / ENTRIES
        if not file.exists():
            return
        with accessing(self.folder), file.open("rb") as stream:
            stream.seek(start)
            end = start
            for line in stream:
                if not line.endswith(b"\n"):
                    # Being written.
                    return
                end += len(line)
                try:
                    yield end, parse(line)
                except ValidationError as error:
                    raise self._damaged(file, error.errors()[0]["msg"]) from None

    def cut_torn_line(self) -> None:
        """Remove the rest of a line whose writer was killed; only for the process that has the training's lock."""
        file = self.folder / ENTRIES
        if not file.exists():
            return
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)
