"""Versions: of Python and of packages that break each other."""

import platform
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, ok, problem, warning

PACKAGE = Requirement("diffusion-core[pipeline]")
LOCK = Path("requirements.lock")
# Name, version and marker of a package in it.
PINNED = r"^([\w.-]+)==([^\s;]+)(?: *; *([^\\\n]+))?"
SETUP = "say `make setup`, or install what the lock says: `pip install -r requirements.lock -e .`"
# The import of Prefect's server is where a version of FastAPI that does not fit shows itself.
SERVER = "prefect.server.api.server"
SECONDS_TO_IMPORT = 15.0
# Of a list of packages in a sentence.
MOST_SHOWN = 3


def packages(_: Environment) -> Iterator[Diagnosis]:
    """Check that the installed packages have the versions that they require of each other."""
    yield ok(f"Python {platform.python_version()}, PyTorch {version('torch')}, diffusion-core {version(PACKAGE.name)}")
    unmet, count = _unmet(PACKAGE)
    for each in unmet:
        yield problem(each, SETUP)
    if not unmet:
        yield ok(f"{count} packages have the versions that they require of each other")


def lock(_: Environment) -> Iterator[Diagnosis]:
    """Check that the installed packages are those of requirements.lock, with which the tests run."""
    if not LOCK.exists():
        return
    lines = re.findall(PINNED, LOCK.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    other = [
        f"{name} {installed} instead of {wanted}"
        for name, wanted, marker in lines
        if (not marker or Marker(marker).evaluate()) and (installed := installed_version(name)) not in (None, wanted)
    ]
    if other:
        yield warning(f"other versions are installed than in {LOCK}: {_listed(other)}", SETUP)
    else:
        yield ok(f"the installed versions are those of {LOCK}")


def prefect_import(_: Environment) -> Iterator[Diagnosis]:
    """Check that Prefect's server can be imported, in another process."""
    if installed_version("prefect") is None:
        return
    command = [sys.executable, "-c", f"import {SERVER}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_TO_IMPORT)
    except subprocess.TimeoutExpired:
        yield warning(
            f"Prefect's server was not imported within {SECONDS_TO_IMPORT:.0f} s", "wait until the machine is less busy"
        )
        return
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason is known"])[-1]
        yield problem(f"Prefect {version('prefect')} cannot be imported: {why[:200]}", SETUP)
    else:
        yield ok(f"Prefect's server can be imported, with FastAPI {installed_version('fastapi')}")


def _unmet(package: Requirement) -> tuple[list[str], int]:
    """Return a sentence for each requirement that is not met below a package, and the number of packages there."""
    sentences, waiting, seen = [], deque([(package, "this project")]), set[tuple[str, frozenset[str]]]()
    while waiting:
        wanted, parent = waiting.popleft()
        name, installed = canonicalize_name(wanted.name), installed_version(wanted.name)
        if installed is None:
            sentences.append(f"{name} is not installed, and {parent} requires it")
        elif not wanted.specifier.contains(installed, prereleases=True):
            sentences.append(f"{name} {installed} is installed, and {parent} requires {name}{wanted.specifier}")
        key = (name, frozenset(wanted.extras))
        if installed is None or key in seen:
            continue
        seen.add(key)
        for requirement in map(Requirement, requires(name) or ()):
            extras = ({"extra": extra} for extra in (*wanted.extras, ""))
            if requirement.marker is None or any(map(requirement.marker.evaluate, extras)):
                waiting.append((requirement, f"{name} {installed}"))
    return [*dict.fromkeys(sentences)], len({name for name, _ in seen})


def installed_version(name: str) -> str | None:
    """Return the version of an installed package without its local part, which names a build, or None."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
