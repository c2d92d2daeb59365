"""DVC's cache: which entries are needed, which have rotted, and where their bytes can be had again.

DVC itself trusts a file of its cache that is not writable, and a file whose time and size did not change.
"""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.scm import NoSCM, NoSCMError, RevError, SCMError
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from scmrepo.exceptions import SCMError as GitError

from diffusion_core.errors import UserError
from diffusion_core.lineage.hashed_files import FOLDER, is_sound, is_whole, put, rotten
from diffusion_core.lineage.needed import ROTTEN, Needed, Output

# Modes of a file in the cache, as DVC has it, and in the checkout.
MODE = 0o444
CHECKED_OUT = 0o644


class NoProject(UserError):
    """This folder is not that of a project."""


class Cache:
    """The cache of the project in this folder.

    Attributes:
        folder: the cache's folder of objects, which may be missing.
        is_shared: whether it lies outside the project, so that other checkouts may use it.
    """

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._store = repo.cache.local
        self.folder = Path(self._store.path)
        self.is_shared = not self.folder.resolve().is_relative_to(Path(repo.dvc_dir).resolve())

    @property
    def has_remote(self) -> bool:
        """Whether the project has a default remote."""
        return bool(self._repo.config["core"].get("remote"))

    def needed(
        self, outputs: Mapping[str, str] = MappingProxyType({}), commits: Iterable[str] = (), only: Iterable[str] = ()
    ) -> Needed:
        """Return the hashes of all files that the checkout, all branches and tags, commits and outputs name.

        Args:
            outputs: paths of registered versions' outputs, by their hashes in dvc.lock.
            commits: hashes of commits; those that this clone does not have are ignored.
            only: hashes of commits that must be in this clone to know what they name.

        Raises:
            UserError: Git does not list the commits.
        """
        unread: dict[str, str] = {}
        # Without Git there are no branches, and the checkout is all.
        has_git = not isinstance(self._repo.scm, NoSCM)
        found = self._named(unread, all_branches=has_git, all_tags=has_git)
        must = {*only, *(_other_heads() if has_git else ())}
        for commit in must | {*commits}:
            try:
                for each, output in self._named(unread, revs=[commit], workspace=False).items():
                    found.setdefault(each, output)
            except (RevError, NoSCMError, GitError):
                if commit in must:
                    unread[f"the commit {commit}"] = "this clone does not have it"
        again = "check out the commit in the version's tag git_commit, and run `dvc repro`"
        for each, path in outputs.items():
            found.setdefault(each, Output(path, "a registered version", again))
        entries: dict[str, Output] = {}
        unlisted: dict[str, str] = {}
        for each, output in found.items():
            # The first name is that of the checkout, if it has one.
            entries.setdefault(each, output)
            if each.endswith(FOLDER):
                files = self._files(each)
                if files is None:
                    unlisted[each] = ROTTEN if self.path(each).exists() else "is missing"
                for name, entry in (files or {}).items():
                    entries.setdefault(entry, replace(output, path=f"{output.path}/{name}"))
        return Needed(entries, unread, unlisted)

    def _named(self, unread: dict[str, str], **revisions: object) -> dict[str, Output]:
        """Return the outputs that revisions name, by hash; add the revisions that cannot be read to `unread`."""
        found: dict[str, Output] = {}
        for revision in self._repo.brancher(**revisions):
            is_checkout = revision in ("", "workspace")
            try:
                outs = self._repo.index.outs
            except (DvcException, GitError, OSError, KeyError) as error:
                unread["the checkout" if is_checkout else f"the revision {revision}"] = _words(error)
                continue
            for out in outs:
                if out.use_cache and out.hash_info:
                    stage, path = out.stage, self._repo.fs.relpath(out.fs_path, self._repo.root_dir)
                    again = f"run `dvc repro {stage.addressing}`"
                    if stage.is_data_source:
                        again = f"bring {path} back from a backup, and run `dvc add {path}`"
                    source = stage.addressing if stage.is_data_source else f"the stage {stage.addressing}"
                    if not is_checkout:
                        source, again = f"{source} in the revision {revision}", f"check {revision} out, {again}"
                    found.setdefault(out.hash_info.value, Output(path, source, again))
        return found

    def entries(self) -> Iterator[tuple[str, Path]]:
        """Yield the hash and the file of each entry."""
        for folder in self.folder.glob("??"):
            for file in folder.iterdir():
                if not file.name.startswith("."):
                    yield folder.name + file.name, file

    def leftovers(self) -> list[Path]:
        """Return the temporary files of processes that were killed, or that restore an entry."""
        return sorted(self.folder.glob("??/.*.tmp-*"))

    def rotten(self, entries: Iterable[str]) -> list[str]:
        """Return those hashes whose files are in the cache with other bytes; reads all of them."""
        return [entry for entry, _ in rotten((each, self.path(each)) for each in sorted(entries))]

    def is_whole(self, entry: str) -> bool:
        """Return whether an entry is in the cache and has its bytes."""
        return is_whole(self.path(entry), entry)

    def path(self, entry: str) -> Path:
        """Return the path of an entry's file."""
        return Path(self._store.oid_to_path(entry))

    def remote_has(self, entries: Iterable[str]) -> set[str]:
        """Return those entries that the project's remote has; none without a remote.

        Raises:
            UserError: the remote cannot be asked.
        """
        wanted = set(entries)
        if not wanted or not self.has_remote:
            return set()
        with _answering():
            return set(self._repo.cloud.get_remote_odb().list_oids_exists(wanted))

    def restore(self, entry: str, from_remote: bool) -> bool:
        """Replace a rotten or missing entry from the checkout or else from the remote; return whether it is sound now.

        An entry that can be had from neither stays as it is.

        Raises:
            UserError: the remote cannot be read.
        """
        found = self.checked_out(entry)
        if found is not None:
            return self.restore_from(entry, found)
        if not from_remote:
            return False
        with _answering():
            remote = self._repo.cloud.get_remote_odb()
            return put(
                self.path(entry), entry, MODE, lambda new: remote.fs.get_file(remote.oid_to_path(entry), str(new))
            )

    def restore_from(self, entry: str, file: Path) -> bool:
        """Replace a rotten or missing entry by a copy of `file` if that is sound; return whether it was."""
        return put(self.path(entry), entry, MODE, partial(shutil.copyfile, file))

    def checked_out(self, entry: str) -> Path | None:
        """Return a sound file of the checkout's outputs that has an entry's bytes, or None."""
        return next((file for file, name in self._in_checkout() if name == entry and is_whole(file, entry)), None)

    def _in_checkout(self) -> Iterator[tuple[Path, str]]:
        """Yield the path of each file of the checkout's outputs, and the hash that DVC has recorded."""
        for out in self._repo.index.outs:
            if not out.hash_info:
                continue
            root = Path(out.fs_path)
            if out.hash_info.isdir:
                for name, entry in (self._files(out.hash_info.value) or {}).items():
                    yield root / name, entry
            else:
                yield root, out.hash_info.value

    def unchanged_files(self) -> list[tuple[str, Path]]:
        """Return the files of the checkout that DVC takes as unchanged, each after the hash that it should have."""
        return [(entry, file) for file, entry in self._in_checkout() if self._seems_unchanged(file, entry)]

    def rotten_files(self, unchanged: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
        """Return those of `unchanged_files` that have rotted.

        A file has rotted if its bytes changed and its time did not: what a stage has made since has another time.
        """
        # Hashing takes minutes, in which a stage may have written or removed a file.
        return [(entry, file) for entry, file in rotten(unchanged) if self._seems_unchanged(file, entry)]

    def check_out(self, file: Path, entry: str) -> bool:
        """Replace a rotten file of the checkout by its entry; return whether it is sound now."""
        source = self.path(entry)
        return is_whole(source, entry) and put(
            file,
            entry,
            CHECKED_OUT,
            partial(shutil.copyfile, source),
            may=lambda: self._seems_unchanged(file, entry),
        )

    def _seems_unchanged(self, file: Path, entry: str) -> bool:
        """Return whether DVC takes a file as unchanged; false for one that is missing."""
        _, known = self._repo.state.get(str(file), self._repo.fs)
        return known is not None and known.value == entry

    def _files(self, output: str) -> Mapping[str, str] | None:
        """Return the hash of each file of an output that is a folder, by path, or None if its list is not whole."""
        path = self.path(output)
        try:
            if not is_sound(path, output):
                return None
            tree = Tree.load(self._store, HashInfo("md5", output))
        except (ObjectFormatError, OSError):
            return None
        return {"/".join(key): entry.value for key, _, entry in tree}


@contextmanager
def dvc_cache() -> Iterator[Cache]:
    """Yield the cache of the project in this folder, locked against DVC's commands.

    Raises:
        NoProject: this is not a project of DVC.
        UserError: a DVC command runs.
    """
    with translate_errors():
        repo = Repo(".")
    try:
        with translate_errors(), repo.lock:
            yield Cache(repo)
    finally:
        repo.close()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise DVC's errors in the block as `UserError`."""
    try:
        yield
    except NotDvcRepoError:
        raise NoProject(".dvc is missing: run the command from the project's folder") from None
    except (DvcException, SCMError, GitError) as error:
        raise UserError(f"DVC refuses: {_words(error)}") from None


@contextmanager
def _answering() -> Iterator[None]:
    """Raise the errors of a remote in the block as `UserError`; each kind of remote has a library with its own."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"DVC's remote cannot be used ({_words(error)}): start it, or correct it with `diffusion remote`"
        ) from None


def _words(error: Exception) -> str:
    cause = f" ({' '.join(str(error.__cause__).split())})" if error.__cause__ is not None else ""
    return " ".join(str(error).split()) + cause


def _other_heads() -> set[str]:
    """Return the commits that worktrees have checked out, those of remotes and stashes, and of DVC's experiments.

    Raises:
        UserError: Git refuses.
    """
    places = ("refs/remotes", "refs/stash", "refs/exps")
    listed = _git("for-each-ref", "--format=%(objecttype) %(objectname)", *places)
    listed += _git("worktree", "list", "--porcelain")
    found = {line.split()[1] for line in listed if line.startswith(("commit ", "HEAD "))}
    # Before the first commit, Git shows zeros.
    return {commit for commit in found if commit.strip("0")}


def _git(*arguments: str) -> list[str]:
    git = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if git.returncode:
        why = " ".join(git.stderr.split())
        raise UserError(f"`git {arguments[0]}` fails ({why}): correct that, because it names what is needed")
    return git.stdout.splitlines()
