"""Atomic and durable writes, and hashes of files."""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from diffusion_core.errors import UserError

DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# EUCLEAN is Linux's.
DISK_FAILS = (errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO))
# The name of what a process makes beside a file or folder. No id of a process has eight digits, as a date has.
_MADE = re.compile(r"\..+\.(?P<word>tmp|old|trash)-(?P<process>\d{1,7})")


def disk_refusal(error: OSError) -> UserError | None:
    """Return the error to raise where a disk is full, read-only or fails, or None for another error."""
    # An error of a copy names both files, and the second is the one that was written.
    file = error.filename2 or error.filename
    # Without a file, as of a terminal that is gone, it is not a disk's.
    if error.errno in DISK_FAILS and file:
        return UserError(f"the disk fails at {file} ({error.strerror}): see the system's log, and use another disk")
    if error.errno not in DISK_REFUSES:
        return None
    where = f" {file}" if file else ""
    return UserError(f"the disk refuses{where} ({error.strerror}): make room or correct its rights")


def expanded(key: str, path: Path) -> Path:
    """Return a path of params.yaml with the folder that `~` means.

    Raises:
        UserError: it begins with `~name` of an unknown user; the message begins with `key`.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(
            f"{key}, with the ~ of a user whom this machine does not know: correct it in params.yaml"
        ) from None


def read_differently(file: Path) -> OSError:
    """Return the error to raise where a disk gives back other bytes than were written."""
    return OSError(errno.EIO, "what was written is read back differently", str(file))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of a disk in the block name `path` if it names no file, as that of a failed write does not."""
    try:
        yield
    except OSError as error:
        if error.errno in (*DISK_REFUSES, *DISK_FAILS) and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder next to `folder`; if the block succeeds, it is flushed to disk and replaces `folder`.

    If the block raises, the new folder is removed and `folder` does not change. Leftovers of killed processes are
    removed first. If a process was killed between the two renames, the old folder is restored.
    """
    new, old = (folder.with_name(f".{folder.name}.{word}-{os.getpid()}") for word in ("tmp", "old"))
    _sweep(folder)
    new.mkdir(parents=True)
    try:
        with naming(new):
            yield new
        # Without it, a loss of power could leave the new names with empty files.
        _flush_filesystem(new)
    except BaseException:
        shutil.rmtree(new)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    flush(folder.parent)
    _remove(old)


def _flush_filesystem(folder: Path) -> None:
    """Flush the filesystem of `folder`, by one call for any number of files, and none that may be dead elsewhere."""
    if sys.platform != "linux":
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove leftovers of killed processes that replaced `folder`, or restore the old folder."""
    for word in ("tmp", "old"):
        for stale in folder.parent.glob(f".{folder.name}.{word}-*"):
            if not _is_stale(stale):
                continue
            if word == "old" and not folder.exists():
                stale.rename(folder)
            else:
                _remove(stale)


def _is_stale(path: Path) -> bool:
    """Return whether a process of this project made a temporary file or folder, and has ended."""
    made = _MADE.fullmatch(path.name)
    if made is None:
        return False
    pid = int(made["process"])
    # Processes of different containers have equal ids, so what has this process's id is stale too.
    return pid == os.getpid() or not psutil.pid_exists(pid)


def temporary_beside(file: Path) -> Path:
    """Return a temporary name for a new version of `file`, and remove the temporary files of killed processes."""
    for stale in file.parent.glob(f".{file.name}.tmp-*"):
        if stale.is_file() and _is_stale(stale):
            stale.unlink(missing_ok=True)
    return file.with_name(f".{file.name}.tmp-{os.getpid()}")


@contextmanager
def replaced_files(files: Sequence[Path]) -> Iterator[Path]:
    """Yield an empty folder; if the block succeeds, flush the files with these names and move them to their paths.

    The paths may be on other filesystems. If the block raises, nothing is moved. Leftovers of killed processes next to
    the first file are removed first.
    """
    folder = files[0].with_name(f".{files[0].name}.tmp-{os.getpid()}")
    _sweep(files[0])
    folder.mkdir(parents=True)
    try:
        with naming(folder):
            yield folder
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            _move(folder / file.name, file)
    finally:
        shutil.rmtree(folder)


def _move(source: Path, target: Path) -> None:
    """Flush a file to disk, and move it so that `target` is never partly written."""
    flush(source)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replaced_file(target) as beside:
            shutil.copyfile(source, beside)
            flush(beside)
    flush(target.parent)


@contextmanager
def replaced_file(file: Path) -> Iterator[Path]:
    """Yield a path next to `file`; if the block succeeds, rename it to `file`, else remove it.

    The caller flushes what must survive a loss of power.
    """
    beside = temporary_beside(file)
    try:
        yield beside
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def discard(folder: Path) -> None:
    """Remove a folder; a kill at any moment leaves it whole, or a leftover for `sweep_discarded`."""
    trash = folder.with_name(f".{folder.name}.trash-{os.getpid()}")
    _remove(trash)
    folder.rename(trash)
    flush(folder.parent)
    _remove(trash)


def discarded(parent: Path) -> list[Path]:
    """Return what processes are discarding in `parent`, or have left there when they were killed."""
    return [trash for trash in parent.glob(".*.trash-*") if _MADE.fullmatch(trash.name)]


def sweep_discarded(parent: Path) -> None:
    """Remove what killed processes left in `parent` while discarding folders."""
    for trash in discarded(parent):
        _remove(trash)


def _remove(folder: Path) -> None:
    """Remove a folder that nothing needs; another process may do so too, and NFS may keep open files of it."""
    shutil.rmtree(folder, ignore_errors=True)


def write_whole(file: Path, content: str, mode: int = 0o666) -> None:
    """Write text to a file next to `file`, flush it to disk, and rename it to `file`.

    Args:
        file: after an error it has its old content, else all of `content`.
        content: the text, written as UTF-8.
        mode: permissions of the new file from its creation, reduced by the process's umask.
    """
    with replaced_file(file) as beside:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with naming(beside), os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    flush(file.parent)


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(file: Path, place: Path) -> None:
    """Make `place` a hard link to the file, or a copy if linking fails."""
    try:
        # The file may be DVC's symbolic link to its cache.
        os.link(file.resolve(), place)
    except OSError:
        shutil.copyfile(file, place)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def leftovers(path: Path) -> Iterator[Path]:
    """Yield what killed processes have left beside `path` while they replaced or discarded it.

    While `path` is missing, its old folder is the only copy, which the next process that replaces `path` restores.
    """
    beside = re.compile(rf"\.+{re.escape(path.name)}(?:\.(?:tmp|old|trash)-\d{{1,7}})+")
    for each in sorted(path.parent.iterdir()) if path.parent.is_dir() else ():
        made = _MADE.fullmatch(each.name) if beside.fullmatch(each.name) else None
        if made and not psutil.pid_exists(int(made["process"])) and (made["word"] != "old" or path.exists()):
            yield each
