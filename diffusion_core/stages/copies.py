"""Copies of a training's checkpoints in a bucket.

Below the address is a folder per training, with the name of the local one, and in it one for each checkpoint. A copy's
manifest is sent last, so what has a manifest is whole.
"""

import logging
import os
import re
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.address import S3Address, parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.checkpoints import (
    FINISHED,
    KEEP,
    MANIFEST,
    MILESTONE,
    SECONDS_TO_RECORD,
    checkpoints,
    problem,
    set_aside,
)
from diffusion_core.storage import Object, Store, delete, download_all, open_store, upload, upload_open

logger = logging.getLogger(__name__)

KEY = re.compile(r"((?P<checkpoint>step-\d{9})/)?(?P<file>\w[\w.-]*)")


@dataclass(frozen=True)
class Copies:
    """The copies of one training's checkpoints.

    All methods raise `UserError` if the store refuses, and `Unavailable` if it does not answer.

    Attributes:
        store: the store.
        address: bucket and prefix of all trainings' copies.
        folder: the training's folder of checkpoints.
    """

    store: Store
    address: S3Address
    folder: Path

    @classmethod
    def of(cls, environment: Environment, folder: Path) -> "Copies | None":
        """Return the copies in the bucket of DIFFUSION_CHECKPOINT_COPIES, or None if it names none.

        Raises:
            UserError: the variable is not a valid address, or the store's settings are not valid.
        """
        if environment.checkpoint_copies is None:
            return None
        try:
            address = parse_s3(environment.checkpoint_copies)
        except ValueError as error:
            raise UserError(f"DIFFUSION_CHECKPOINT_COPIES: {error}") from None
        return cls(open_store(environment), address, folder)

    def check(self) -> None:
        """Check that the bucket can be read and written."""
        self.store.check(self.address.bucket)
        if not self.store.may_write(self.address.bucket, self.address.prefix):
            raise UserError(
                f"DIFFUSION_CHECKPOINT_COPIES is {self.address}, where these credentials may not write: permit it, or"
                " unset the variable"
            )

    def fetch(self, newer_than: int) -> str | None:
        """Download the newest whole copy whose step is larger than `newer_than`, and return its name, or None.

        Damaged ones are passed over with a warning.
        """
        passed: set[str] = set()
        # Listed again after each that was passed over, because another machine may have replaced it by a newer one.
        while names := [each for each in self._whole() if each not in passed and int(each[5:]) > newer_than]:
            name = max(names)
            if self.fetch_one(name):
                return name
            passed.add(name)
        return None

    def fetch_one(self, name: str) -> bool:
        """Download the copy of one checkpoint, in place of a damaged one, and return whether it is whole.

        Raises:
            Unavailable: the store does not answer.
            OSError: the disk is full or refuses.
        """
        objects = self._listed(self.folder.name).get(name, {})
        if MANIFEST not in objects:
            return False
        temporary = self.folder / f"{name}.tmp-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            damage = self._downloaded(objects, temporary)
            if damage is not None:
                logger.warning("the copy of %s in %s is damaged (%s): it is not used", name, self.address, damage)
                return False
            target = self.folder / name
            if target.exists():
                set_aside(target)
            temporary.rename(target)
            return True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _downloaded(self, objects: dict[str, Object], folder: Path) -> str | None:
        """Download a copy to `folder`, and return why it is damaged, or None if it is whole."""
        wanted = [(each, folder / file) for file, each in objects.items()]
        try:
            hashes = {file.name: sha256 for _, file, sha256 in download_all(self.store, self.address.bucket, wanted)}
        except Unavailable:
            raise
        except UserError as error:
            return str(error)
        return problem(folder, hashes)

    def send(self) -> None:
        """Send what the bucket lacks, newest first, and remove copies that are older than what the folder keeps.

        What the folder no longer has when its turn comes is passed over. Newer copies stay: another machine that is
        further may have made them.
        """
        found = self._listed(self.folder.name)
        self._send_end(found)
        kept = [path for path in checkpoints(self.folder) if self._send(path, found.get(path.name, {}))]
        if kept:
            self._delete_old(found, kept)

    def _send(self, checkpoint: Path, there: dict[str, Object]) -> bool:
        """Send what the bucket lacks of a checkpoint, its manifest last; return whether the copy is whole."""
        if MANIFEST in there:
            return True
        with ExitStack() as held:
            try:
                # All together: the training may remove the checkpoint while a slow bucket takes it.
                files = {path.name: held.enter_context(path.open("rb")) for path in checkpoint.iterdir()}
            except FileNotFoundError:
                # It did so before.
                return False
            for name in sorted(files, key=lambda name: name == MANIFEST):
                key = self._key(f"{checkpoint.name}/{name}")
                upload_open(self.store, self.address.bucket, files[name], key, there.get(name))
        return True

    def _delete_old(self, found: dict[str, dict[str, Object]], kept: list[Path]) -> None:
        """Keep as many of the newest whole copies as `kept` has checkpoints, at least `KEEP`; delete what is older.

        Args:
            found: the objects of each copy in the bucket.
            kept: the checkpoints in this folder, newest first.
        """
        names = {path.name for path in kept if not (path / MILESTONE).exists()} or {kept[0].name}
        count = max(KEEP, len(names))
        older = {name: each for name, each in found.items() if name and name < kept[0].name and MILESTONE not in each}
        names |= {name for name, objects in older.items() if MANIFEST in objects}
        oldest = sorted(names)[-count:][0]
        for name, objects in older.items():
            if name < oldest and not (self.folder / name).exists():
                self._delete(objects)

    def send_end(self) -> None:
        """Let the bucket say that the training is finished, if the folder does, before anything else is sent."""
        self._send_end(self._listed(self.folder.name))

    def _send_end(self, found: dict[str, dict[str, Object]]) -> None:
        marker = found.get("", {}).get(FINISHED)
        if (self.folder / FINISHED).exists():
            if marker is None:
                upload(self.store, self.address.bucket, self.folder / FINISHED, self._key(FINISHED))
        elif marker is not None:
            delete(self.store, self.address.bucket, marker.key)

    def remove_finished(self) -> None:
        """Remove the copies of other trainings that have been finished for a while, but for milestones."""
        listed = self.store.objects(self.address.bucket, self.address.prefix)
        trainings = {each.key.removeprefix(self.address.prefix).partition("/")[0] for each in listed}
        for training in trainings - {self.folder.name}:
            found = self._listed(training)
            marker = found.pop("", {}).get(FINISHED)
            if marker is not None and marker.modified <= time.time() - SECONDS_TO_RECORD:
                for objects in found.values():
                    if MILESTONE not in objects:
                        self._delete(objects)
                # Last: what a kill leaves is removed by the next training.
                delete(self.store, self.address.bucket, marker.key)

    def _whole(self) -> list[str]:
        return [name for name, objects in self._listed(self.folder.name).items() if MANIFEST in objects and name]

    def _listed(self, training: str) -> dict[str, dict[str, Object]]:
        """Return the objects of a training's copies by checkpoint, "" for those of none, and by file name."""
        prefix = f"{self.address.prefix}{training}/"
        found: dict[str, dict[str, Object]] = {}
        for each in self.store.objects(self.address.bucket, prefix):
            # Other keys are not ours, and one with `..` would lead out of the folder.
            if parts := KEY.fullmatch(each.key.removeprefix(prefix)):
                found.setdefault(parts["checkpoint"] or "", {})[parts["file"]] = each
        return found

    def _key(self, name: str) -> str:
        return f"{self.address.prefix}{self.folder.name}/{name}"

    def _delete(self, objects: dict[str, Object]) -> None:
        """Delete a copy, its manifest first: a copy that is partly removed is not whole."""
        for key in sorted((each.key for each in objects.values()), key=lambda key: not key.endswith(MANIFEST)):
            delete(self.store, self.address.bucket, key)
