"""Commands of git and DVC."""

import subprocess
import sys

DVC = [sys.executable, "-m", "dvc"]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost"]


def say(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
