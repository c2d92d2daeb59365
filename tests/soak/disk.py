"""A small disk that can be filled: a tmpfs where this process may mount one."""

import errno
import os
import subprocess
import sys

BYTES = 160 * 2**20
OWN_MOUNTS = "SOAK_OWN_MOUNTS"


def enter_namespace():
    """Run this program again where it may mount, and where its mounts end with it; do nothing if there is no such."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if OWN_MOUNTS in os.environ or sys.platform != "linux":
        return
    probe = [*namespace, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        possible = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if possible:
        os.environ[OWN_MOUNTS] = "1"
        os.execvp("unshare", [*namespace, sys.executable, "-m", "tests.soak", *sys.argv[1:]])


class Disk:
    """A folder on a small filesystem of its own, or an ordinary folder where none can be mounted.

    Args:
        folder: where to mount it; created.

    Attributes:
        can_be_filled: whether it is on a filesystem of its own.
    """

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.can_be_filled = OWN_MOUNTS in os.environ
        self._ballast = folder / "ballast"
        if self.can_be_filled:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", folder], check=True)

    def fill(self, left):
        """Fill it, but for some bytes."""
        with self._ballast.open("wb") as file:
            while True:
                room = os.statvfs(self.folder)
                try:
                    os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - left))
                    return
                except OSError as error:
                    # What is disturbed has written meanwhile.
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self):
        """Make room again."""
        self._ballast.unlink(missing_ok=True)

    def unmount(self):
        """Remove it with all that is on it."""
        if self.can_be_filled:
            subprocess.run(["umount", "--lazy", self.folder], check=True)
