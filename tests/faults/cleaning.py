"""What `diffusion clean` looks at: files by their age, outputs in DVC's cache, and registered versions."""

import os
import time

from diffusion_core.config.environment import Environment
from diffusion_core.stages import clean
from tests.faults.git_dvc import DVC, say

LONG_AGO = time.time() - 30 * 24 * 3600
DEAD = 2**22 + 1


def age(path):
    """Make a file, or all files of a folder, a month old."""
    for file in (path, *path.rglob("*")):
        os.utime(file, (LONG_AGO, LONG_AGO))


def add_version(client, name, tags):
    """Register a version of a model without files, and return its number."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return client.create_model_version(name, "file:///nowhere", tags=tags).version


def cleaned(project, capsys, remove=True, **options):
    environment = Environment(tracking_uri=f"sqlite:///{project}/mlflow.db", **options)
    clean.run(environment, 7, remove)
    return capsys.readouterr().out


def output(project, content):
    """Record a new content of the output `out.bin`, and return its entry in the cache."""
    (project / "out.bin").write_bytes(content)
    say(*DVC, "add", "-q", "out.bin")
    (entry,) = (path for path in project.glob(".dvc/cache/files/md5/*/*") if path.read_bytes() == content)
    age(entry)
    return entry
