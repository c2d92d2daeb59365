"""One stack for all tests of this folder, with real servers."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from diffusion_core.data.sources.digits import Digits
from stack.home import StackError
from stack.postgres import owner, program
from tests.stack.project import SOURCE, python, variables, write_project


@pytest.fixture(scope="package")
def place():
    """A folder that PostgreSQL's own user may pass through, as pytest's own folders are not."""
    try:
        program("initdb")
        owner()
    except StackError as trouble:
        pytest.skip(str(trouble))
    folder = Path(tempfile.mkdtemp(prefix="stack-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="package")
def images(place):
    """A folder of the digits, one file each."""
    folder = place / "digits"
    items = Digits().items()
    for item, content in zip(items, Digits().contents(items), strict=True):
        file = folder / item.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


@pytest.fixture(scope="package")
def stack(place, images):
    """The project's folder, while its stack runs; its images lie in the bucket."""
    folder = place / "project"
    write_project(folder)
    # For the worker: often enough that a test need not wait.
    (folder / ".env").write_text("DIFFUSION_CHECKPOINT_SECONDS=1\nDIFFUSION_DEVICE=cpu\n")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "stack", "up"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        sent = python(folder, "diffusion_core", "upload", str(images), SOURCE)
        assert sent.returncode == 0, sent.stderr
        yield folder
    finally:
        subprocess.run([sys.executable, "-m", "stack", "down"], cwd=folder, check=True, env=variables(folder))
