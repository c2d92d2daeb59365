"""Disks: room, inodes, the right to write, and what DVC's cache costs."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, ok, problem, warning
from diffusion_core.doctor.dvc import cache_folder

MIB, GIB = 2**20, 2**30
# A checkpoint of the demo takes 10 MiB. A dataset of photographs takes gigabytes.
LEAST_BYTES = 100 * MIB
LITTLE_BYTES = 2 * GIB
LITTLE_INODES = 10_000
# Filesystems in which a copy may share its blocks with the original.
REFLINKS = ("apfs", "bcachefs", "btrfs", "ocfs2", "xfs", "zfs")


def disks(environment: Environment) -> Iterator[Diagnosis]:
    """Check room and inodes of each filesystem in use, and that its folders can be written."""
    filesystems: dict[int, list[tuple[str, Path]]] = {}
    for name, path in _places(environment).items():
        folder = _existing(path)
        if not os.access(folder, os.W_OK | os.X_OK):
            is_readonly = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
            why = "its filesystem is read-only" if is_readonly else "this user has no right to write there"
            yield problem(f"{name} cannot be written in {folder}: {why}", "correct its rights, or name another folder")
        filesystems.setdefault(folder.stat().st_dev, []).append((name, folder))
    for places in filesystems.values():
        yield _room(", ".join(name for name, _ in places), places[0][1])


def reflinks(environment: Environment) -> Iterator[Diagnosis]:
    """Say whether DVC's cache takes the room of its outputs a second time."""
    cache, here = _existing(cache_folder(environment)), Path.cwd()
    if not Path(".dvc").is_dir():
        return
    if cache.stat().st_dev != here.stat().st_dev:
        yield ok("DVC's cache is on another filesystem than the checkout: outputs are copied, and take room on both")
        return
    kind = _filesystem(here)
    shares = "may share its blocks with the outputs" if kind in REFLINKS else "takes the room of the outputs again"
    yield ok(f"DVC's cache {shares}: the filesystem is {kind}")


def _places(environment: Environment) -> dict[str, Path]:
    """Return the folders that stages write, by their name in a sentence."""
    places = {
        "data and models": Path(),
        "checkpoints": environment.checkpoints,
        "DVC's cache": cache_folder(environment),
        "downloads": environment.downloads or Path(".cache/downloads"),
        "compiled kernels": environment.compile_cache,
        "temporary files": Path(tempfile.gettempdir()),
    }
    return {name: path.absolute() for name, path in places.items()}


def _existing(path: Path) -> Path:
    """Return the nearest folder that exists."""
    return next(each for each in (path, *path.absolute().parents) if each.is_dir())


def _room(names: str, folder: Path) -> Diagnosis:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    size = f"{free / GIB:.1f} GiB" if free >= GIB else f"{free / MIB:.0f} MiB"
    sentence = f"{size} are free for {names}"
    remedy = "make room: `diffusion clean` shows what may go"
    if free < LEAST_BYTES:
        return problem(sentence, remedy)
    # Some filesystems have no fixed number of inodes, and say 0.
    if disk.f_files and disk.f_favail < LITTLE_INODES:
        return problem(f"only {disk.f_favail:,} files can be created for {names}, because inodes are used up", remedy)
    return warning(sentence, remedy) if free < LITTLE_BYTES else ok(sentence)


def _filesystem(folder: Path) -> str:
    """Return the type of the filesystem that holds a folder."""
    mounts = [each for each in psutil.disk_partitions(all=True) if folder.is_relative_to(each.mountpoint)]
    return max(mounts, key=lambda each: len(each.mountpoint)).fstype if mounts else "not known"
