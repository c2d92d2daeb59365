"""A small filesystem of memory that can be filled, emptied and made read-only, and commands that work on it.

It is mounted in a mount namespace of its own, which needs no root where Linux grants user namespaces.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

BALLAST = ".ballast"
NAMESPACES = (("--user", "--map-root-user", "--mount"), ("--mount",))


class SmallDisk:
    """A filesystem in a namespace.

    Attributes:
        path: where the commands in the namespace see it.
        seen: where this process sees it.
    """

    def __init__(self, holder, path, user):
        self.path = path
        self.seen = Path(f"/proc/{holder.pid}/root{path}")
        self._enter = ["nsenter", f"--target={holder.pid}", "--mount", *(["--user"] if user else [])]

    def inside(self, command, folder="."):
        """Return a command that runs `command` in a folder of the disk."""
        return [*self._enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self.path / folder), *command]

    def mount(self, options):
        subprocess.run([*self._enter, "mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def fill(self, left):
        """Leave so many bytes."""
        self.make_room()
        free = shutil.disk_usage(self.seen).free
        with (self.seen / BALLAST).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - left)

    def make_room(self):
        (self.seen / BALLAST).unlink(missing_ok=True)


@contextmanager
def small_disk(path, megabytes):
    """Mount a filesystem at `path` for the block; skip the test where this is not possible, and fail it in CI."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        _give_up("mount namespaces are Linux's")
    path.mkdir()
    script = f'mount -t tmpfs -o size={megabytes}m tmpfs "$0" && echo mounted && exec sleep 600'
    for namespace in NAMESPACES:
        command = ["unshare", *namespace, "sh", "-c", script, str(path)]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            if holder.stdout.readline() == "mounted\n":
                yield SmallDisk(holder, path, "--user" in namespace)
                return
        finally:
            holder.kill()
            why = holder.communicate()[1].strip()
    _give_up(f"this machine mounts no filesystem for its users: {why}")


def _give_up(why):
    """Skip the test, or fail it in CI, where nobody would notice that the promises of a full disk are not tested."""
    (pytest.fail if "CI" in os.environ else pytest.skip)(why)
