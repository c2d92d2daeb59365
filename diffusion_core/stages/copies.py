"""Copies of a training's checkpoints in a bucket.

Below the address is a folder per training, with the name of the local one, and in it one for each checkpoint. A copy's
manifest is sent last, so what has a manifest is whole.
"""

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.address import S3Address, parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.checkpoints import FINISHED, MANIFEST, MILESTONE, checkpoints, newest_step, problem
from diffusion_core.storage import Object, Store, delete, download_all, open_store, upload

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

    def fetch(self) -> None:
        """Download the newest whole copy, if it is newer than the checkpoints in the folder."""
        found = self._listed(self.folder.name)
        for name in sorted(found.keys() - {""}, reverse=True):
            if int(name[5:]) <= (newest_step(self.folder) or 0):
                return
            if MANIFEST in found[name]:
                self._fetch(name, found[name])

    def _fetch(self, name: str, objects: dict[str, Object]) -> None:
        temporary = self.folder / f"{name}.tmp-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for _ in download_all(
                self.store, self.address.bucket, [(each, temporary / file) for file, each in objects.items()]
            ):
                pass
            damage = problem(temporary)
            if damage is None:
                temporary.rename(self.folder / name)
                print(f"train: fetched the checkpoint {name} from {self.address}", flush=True)
            else:
                logger.warning("the copy of %s in %s is damaged (%s): it is not used", name, self.address, damage)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def send(self) -> None:
        """Send what the bucket lacks, newest first, and remove copies of checkpoints that are no longer kept."""
        found = self._listed(self.folder.name)
        kept = checkpoints(self.folder)
        for path in kept:
            if MANIFEST not in found.get(path.name, {}):
                files = sorted(path.iterdir(), key=lambda file: file.name == MANIFEST)
                for file in files:
                    self._upload(file, f"{path.name}/{file.name}")
        if (self.folder / FINISHED).exists() and FINISHED not in found.get("", {}):
            self._upload(self.folder / FINISHED, FINISHED)
        if kept:
            names = {path.name for path in kept}
            self._delete([each for name, each in found.items() if name not in {*names, ""} and MILESTONE not in each])

    def remove_finished(self) -> None:
        """Remove the copies of other trainings that are finished, but for milestones."""
        listed = self.store.objects(self.address.bucket, self.address.prefix)
        trainings = {each.key.removeprefix(self.address.prefix).partition("/")[0] for each in listed}
        for training in trainings - {self.folder.name}:
            found = self._listed(training)
            if FINISHED in found.get("", {}):
                self._delete([each for each in found.values() if MILESTONE not in each])

    def _listed(self, training: str) -> dict[str, dict[str, Object]]:
        """Return the objects of a training's copies by checkpoint, "" for those of none, and by file name."""
        prefix = f"{self.address.prefix}{training}/"
        found: dict[str, dict[str, Object]] = {}
        for each in self.store.objects(self.address.bucket, prefix):
            # Other keys are not ours, and one with `..` would lead out of the folder.
            if parts := KEY.fullmatch(each.key.removeprefix(prefix)):
                found.setdefault(parts["checkpoint"] or "", {})[parts["file"]] = each
        return found

    def _upload(self, file: Path, name: str) -> None:
        upload(self.store, self.address.bucket, file, f"{self.address.prefix}{self.folder.name}/{name}")

    def _delete(self, copies: list[dict[str, Object]]) -> None:
        for objects in copies:
            # The manifest first: a copy that is partly removed is not whole.
            keys = sorted((each.key for each in objects.values()), key=lambda key: not key.endswith(MANIFEST))
            for key in keys:
                delete(self.store, self.address.bucket, key)
