"""DVC's cache: which entries are needed, which have rotted, and where their bytes can be had again.

DVC itself trusts a file of its cache that is not writable, and a file whose time and size did not change.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.scm import NoSCMError, RevError, SCMError
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError

from diffusion_core.errors import UserError
from diffusion_core.files import flush
from diffusion_core.parallel import in_parallel

HASHING_THREADS = 4
FOLDER = ".dir"
# Mode of a file in the cache, as DVC has it.
MODE = 0o444


class Cache:
    """The cache of the project in this folder.

    Attributes:
        folder: the cache's folder of objects, which may be missing.
    """

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._store = repo.cache.local
        self.folder = Path(self._store.path)

    def needed(self, outputs: Iterable[str], commits: Iterable[str]) -> set[str]:
        """Return the hashes of all files that the checkout, all branches and tags, commits and outputs name.

        Args:
            outputs: hashes of outputs, as in dvc.lock.
            commits: hashes of commits; those that this clone does not have are ignored.
        """
        needed = set(outputs)
        try:
            found = [self._repo.used_objs(all_branches=True, all_tags=True, skip_failed=True)]
        except NoSCMError:
            # Without Git there are no branches, and the checkout is all.
            found = [self._repo.used_objs(skip_failed=True)]
        for commit in {*commits, *_heads_of_remotes()}:
            with suppress(RevError):
                found.append(self._repo.used_objs(revs=[commit], skip_failed=True))
        needed |= {entry.value for each in found for entries in each.values() for entry in entries}
        return needed | {each for output in needed for each in self._files(output).values()}

    def entries(self) -> Iterator[tuple[str, Path]]:
        """Yield the hash and the file of each entry."""
        for folder in self.folder.glob("??"):
            for file in folder.iterdir():
                if not file.name.startswith("."):
                    yield folder.name + file.name, file

    def rotten(self, needed: Iterable[str]) -> list[str]:
        """Return those hashes whose files are in the cache with other bytes; reads all of them."""
        there = sorted(each for each in needed if self.path(each).exists())
        sound = in_parallel(lambda each: is_sound(self.path(each), each), there, HASHING_THREADS)
        return [each for each, is_right in zip(there, sound, strict=True) if not is_right]

    def path(self, entry: str) -> Path:
        """Return the path of an entry's file."""
        return Path(self._store.oid_to_path(entry))

    def remote_has(self, entries: Iterable[str]) -> set[str]:
        """Return those entries that the project's remote has; none without a remote.

        Raises:
            UserError: the remote cannot be asked.
        """
        wanted = set(entries)
        if not wanted or not self._repo.config["core"].get("remote"):
            return set()
        with told():
            return set(self._repo.cloud.get_remote_odb().list_oids_exists(wanted))

    def restore(self, entry: str, from_remote: bool) -> bool:
        """Replace a rotten entry from the remote or from the checkout; return whether it is sound now.

        An entry that can be had from neither stays as it is.
        """
        path = self.path(entry)
        aside = path.rename(path.with_name(f".{path.name}.rotten"))
        try:
            if from_remote:
                with told():
                    self._repo.cloud.pull([HashInfo("md5", entry)])
            else:
                self._restore_from_checkout(entry, path)
            return path.exists() and is_sound(path, entry)
        finally:
            if path.exists():
                aside.unlink()
            else:
                aside.rename(path)

    def _restore_from_checkout(self, entry: str, path: Path) -> None:
        for file, name in self.checked_out().items():
            if name == entry and is_sound(file, entry):
                _copy(file, path, MODE)
                return

    def checked_out(self) -> dict[Path, str]:
        """Return the hash that each file of the checkout's outputs should have, if DVC takes it as unchanged."""
        found = {}
        for out in self._repo.index.outs:
            if out.hash_info is None or not out.hash_info.value:
                continue
            root = Path(out.fs_path)
            names = self._files(out.hash_info.value) if out.hash_info.isdir else {"": out.hash_info.value}
            for name, entry in names.items():
                file = root / name if name else root
                if file.is_file() and self._seems_unchanged(file, entry):
                    found[file] = entry
        return found

    def rotten_files(self) -> list[tuple[Path, str]]:
        """Return the files of the checkout that have rotted, and the hash that each should have."""
        files = list(self.checked_out().items())
        sound = in_parallel(lambda each: is_sound(*each), files, HASHING_THREADS)
        return [each for each, is_right in zip(files, sound, strict=True) if not is_right]

    def check_out(self, file: Path, entry: str) -> bool:
        """Replace a rotten file of the checkout by its entry; return whether it is sound now."""
        source = self.path(entry)
        if not source.exists() or not is_sound(source, entry):
            return False
        _copy(source, file, 0o644)
        return is_sound(file, entry)

    def _seems_unchanged(self, file: Path, entry: str) -> bool:
        _, known = self._repo.state.get(str(file), self._repo.fs)
        # What a stage has made since without DVC has another time, and is not rotten.
        return known is not None and known.value == entry

    def _files(self, output: str) -> Mapping[str, str]:
        """Return the hash of each file of an output that is a folder and whose list is in the cache, by path."""
        if not output.endswith(FOLDER):
            return {}
        try:
            tree = Tree.load(self._store, HashInfo("md5", output))
        except (ObjectFormatError, OSError, ValueError, KeyError, TypeError):
            # Missing or rotten, which `rotten` says.
            return {}
        return {"/".join(key): entry.value for key, _, entry in tree}


@contextmanager
def dvc_cache() -> Iterator[Cache]:
    """Yield the cache of the project in this folder, locked against DVC's commands.

    Raises:
        UserError: this is not a project of DVC, or a DVC command runs.
    """
    with told():
        repo = Repo(".")
    try:
        with told(), repo.lock:
            yield Cache(repo)
    finally:
        repo.close()


@contextmanager
def told() -> Iterator[None]:
    """Raise DVC's errors in the block as `UserError`."""
    try:
        yield
    except NotDvcRepoError:
        raise UserError(".dvc is missing: run the command from the project's folder") from None
    except (DvcException, SCMError) as error:
        raise UserError(f"DVC refuses: {' '.join(str(error).split())}") from None


def _heads_of_remotes() -> list[str]:
    """Return the commits of branches that this clone knows from its remotes."""
    git = subprocess.run(
        ["git", "for-each-ref", "--format=%(objectname)", "refs/remotes"], capture_output=True, text=True, check=False
    )
    return git.stdout.split()


def is_sound(file: Path, entry: str) -> bool:
    """Return whether a file has the bytes that an entry's hash says."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == entry.removesuffix(FOLDER)


def _copy(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.copyfile(source, beside)
    beside.chmod(mode)
    flush(beside)
    beside.replace(target)
