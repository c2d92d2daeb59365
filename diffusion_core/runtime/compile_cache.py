"""A persistent folder for torch.compile's caches, so that the next process compiles nothing again.

The folder has a sub-folder for each key: PyTorch, Python, device, processor and the compiled code. Results of another
PyTorch or another machine are never read. PyTorch executes the files in this folder, so a user with write access can
run code as the user that reads it.
"""

import errno
import hashlib
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# The folders of the compiled code. When it changes, so does the key, and the old key is removed later.
PACKAGE = Path(__file__).parent.parent
COMPILED = (PACKAGE / "networks", PACKAGE / "runtime")

# A file in each key's folder; its modification time is that of the last use.
LAST_USE = "compile-cache-last-use"
UNUSED_SECONDS = 30 * 24 * 3600.0

# Values that this process has set, for example for another device; not set by the user.
_set_here: set[str] = set()

# Free space that the folder must have; the kernels of a small network need more.
PROBE_BYTES = 2**20


def use_compile_cache(folder: Path, device: torch.device) -> Path | None:
    """Make torch.compile store its results in `folder` and reuse those of earlier processes.

    Call it before the first compilation. It removes keys that have not been used for 30 days. It does not change a
    TORCHINDUCTOR_CACHE_DIR or TRITON_CACHE_DIR that the user has set.

    Returns:
        The folder of the results; None if `folder` cannot be used. Then a warning gives the reason, and PyTorch's
        temporary folder stays in use.
    """
    if own := _set_by_user("TORCHINDUCTOR_CACHE_DIR"):
        return Path(own).absolute()
    try:
        # Absolute, because compiler processes may have another working directory.
        folder = Path(os.path.realpath(folder))
        path = folder / _key(device)
        _check_name(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / LAST_USE).touch()
        # Before the check, because it frees space.
        _remove_unused(path)
        _check(path)
    except OSError as error:
        logger.warning(
            "DIFFUSION_COMPILE_CACHE: %s cannot be used (%s): kernels are kept in PyTorch's temporary folder instead;"
            " name another folder",
            folder,
            error.strerror or error,
        )
        return None
    # PyTorch reads the variables at each compilation and passes them to compiler processes.
    triton = _set_by_user("TRITON_CACHE_DIR")
    _set_here.update((str(path / "inductor"), str(path / "triton")))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path / "inductor")
    if not triton:
        os.environ["TRITON_CACHE_DIR"] = str(path / "triton")
    return path


def _set_by_user(variable: str) -> str | None:
    """Return the variable's value, or None if it is PyTorch's default, which importing torch._dynamo sets."""
    value = os.environ.get(variable)
    if not value or value in _set_here or value.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_")):
        return None
    return value


def _key(device: torch.device) -> str:
    """Return the name of this process's key: readable parts, then a digest."""
    processor, details = describe_processor()
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} sm{major}{minor}"
    else:
        name = f"{device.type} {processor}"
    # The processor also matters for a GPU: the C compiler builds the code that launches kernels.
    digest = hashlib.sha256("\n".join([platform.machine(), *platform.libc_ver(), details]).encode())
    for folder in COMPILED:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"\0{file.relative_to(folder.parent).as_posix()}\0".encode() + file.read_bytes())
    parts = [f"torch-{torch.__version__}", f"python-{platform.python_version()}", name, digest.hexdigest()[:16]]
    return "_".join(re.sub(r"[^A-Za-z0-9.+]+", "-", part) for part in parts)


def describe_processor() -> tuple[str, str]:
    """Return the processor's name and its features; PyTorch compiles for exactly these (-march=native).

    Virtual machines may give different processors the same name; code for one can then end with SIGILL on another.
    """
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return platform.processor() or platform.machine(), ""
    lines = [line for line in first.splitlines() if re.match(r"(vendor|cpu family|model|flags|Features|CPU )", line)]
    named = re.search(r"^model name\s*:\s*(.+)$", first, re.MULTILINE)
    return named[1] if named else platform.machine(), "\n".join(lines)


def _check_name(path: Path) -> None:
    """Check that the C compiler accepts the path.

    Raises:
        OSError: the path has white space or quotes.
    """
    if re.search(r"[\s'\"\\]", str(path)):
        raise OSError(errno.EINVAL, "the C compiler's command takes no white space or quotes in a path")


def _check(path: Path) -> None:
    """Check that shared libraries can be written to the folder and loaded from it.

    Raises:
        OSError: they cannot.
    """
    if hasattr(os, "statvfs") and os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise OSError(errno.EACCES, "it is mounted with noexec")
    with tempfile.NamedTemporaryFile(dir=path) as file:
        # Random bytes, because a file system may store zeros without using space.
        file.write(os.urandom(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _remove_unused(current: Path) -> None:
    """Remove other keys that have not been used for 30 days; other processes may do so at the same time."""
    for path in current.parent.glob("torch-*"):
        try:
            unused = time.time() - (path / LAST_USE).stat().st_mtime
        except OSError:
            # Not a key, or another process has removed it.
            continue
        if path != current and unused > UNUSED_SECONDS:
            # The marker is removed last, so that a later process completes an interrupted removal.
            for name in ("inductor", "triton"):
                shutil.rmtree(path / name, ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
