"""DVC's cache: which entries are needed, which have rotted, and where their bytes can be had again.

DVC itself trusts a file of its cache that is not writable, and a file whose time and size did not change.
"""

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.scm import NoSCM, NoSCMError, RevError, SCMError
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from scmrepo.exceptions import SCMError as GitError

from diffusion_core.errors import UserError
from diffusion_core.lineage.hashed_files import FOLDER, is_sound, is_whole, put, rotten

# Modes of a file in the cache, as DVC has it, and in the checkout.
MODE = 0o444
CHECKED_OUT = 0o644
ROTTEN = "has rotted"


class NoProject(UserError):
    """This folder is not that of a project."""


@dataclass(frozen=True)
class Needed:
    """The entries that are needed, and why others may be needed too.

    Attributes:
        entries: the hashes of all files that something names.
        unread: what could not be read, such as a branch, and why.
        unlisted: outputs whose list of files is missing or has rotted, and which of the two.
    """

    entries: set[str]
    unread: Mapping[str, str]
    unlisted: Mapping[str, str]

    @property
    def unknown(self) -> str | None:
        """Say why entries that are not in `entries` may be needed, and the remedy; None if they are not."""
        for what, why in self.unread.items():
            return f"{what} cannot be read ({why}): correct it"
        for output, why in self.unlisted.items():
            remedy = "say `diffusion verify --repair`" if why == ROTTEN else "try `dvc fetch --all-branches --all-tags`"
            return f"the list of files of the output {output} {why}: {remedy}"
        return None


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

    def needed(self, outputs: Iterable[str] = (), commits: Iterable[str] = (), only: Iterable[str] = ()) -> Needed:
        """Return the hashes of all files that the checkout, all branches and tags, commits and outputs name.

        Args:
            outputs: hashes of outputs, as in dvc.lock.
            commits: hashes of commits; those that this clone does not have are ignored.
            only: hashes of commits that must be in this clone to know what they name.

        Raises:
            UserError: Git does not list the commits.
        """
        unread: dict[str, str] = {}
        found = set(outputs)
        # Without Git there are no branches, and the checkout is all.
        has_git = not isinstance(self._repo.scm, NoSCM)
        found |= self._named(unread, all_branches=has_git, all_tags=has_git)
        must = {*only, *(_other_heads() if has_git else ())}
        for commit in must | {*commits}:
            try:
                found |= self._named(unread, revs=[commit], workspace=False)
            except (RevError, NoSCMError, GitError):
                if commit in must:
                    unread[f"the commit {commit}"] = "this clone does not have it"
        unlisted: dict[str, str] = {}
        for output in sorted(each for each in found if each.endswith(FOLDER)):
            files = self._files(output)
            if files is None:
                unlisted[output] = ROTTEN if self.path(output).exists() else "is missing"
            else:
                found |= {*files.values()}
        return Needed(found, unread, unlisted)

    def _named(self, unread: dict[str, str], **revisions: object) -> set[str]:
        """Return the hashes of the outputs that revisions name; add the revisions that cannot be read to `unread`."""
        found = set()
        for revision in self._repo.brancher(**revisions):
            try:
                outs = self._repo.index.outs
            except (DvcException, GitError, OSError, KeyError) as error:
                what = "the checkout" if revision in ("", "workspace") else f"the revision {revision}"
                unread[what] = _words(error)
            else:
                found |= {out.hash_info.value for out in outs if out.use_cache and out.hash_info}
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
        with _answering():
            return set(self._repo.cloud.get_remote_odb().list_oids_exists(wanted))

    def restore(self, entry: str, from_remote: bool) -> bool:
        """Replace a rotten or missing entry from the checkout or else from the remote; return whether it is sound now.

        An entry that can be had from neither stays as it is.

        Raises:
            UserError: the remote cannot be read.
        """
        path = self.path(entry)
        found = next((file for file, name in self._in_checkout() if name == entry and is_whole(file, entry)), None)
        if found is not None:
            return put(path, entry, MODE, partial(shutil.copyfile, found))
        if not from_remote:
            return False
        with _answering():
            remote = self._repo.cloud.get_remote_odb()
            return put(path, entry, MODE, lambda new: remote.fs.get_file(remote.oid_to_path(entry), str(new)))

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

    def rotten_files(self) -> list[tuple[str, Path]]:
        """Return the hash that each file of the checkout should have that has rotted, and the file.

        A file has rotted if its bytes changed and its time did not: what a stage has made since has another time.
        """
        unchanged = [(entry, file) for file, entry in self._in_checkout() if self._seems_unchanged(file, entry)]
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
