"""torch.compile's caches in a folder that outlives the process, so that the next one starts at once.

The folder has a sub-folder for each key: PyTorch, Python, device, processor and the code that is compiled. What another
PyTorch or another machine has written is never read. PyTorch loads what it finds there as code: whoever can write to
the folder can run code as whoever reads it.
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

# Whose code is compiled. A key that another state of it made is never used again, and goes.
PACKAGE = Path(__file__).parent.parent
COMPILED = (PACKAGE / "networks", PACKAGE / "runtime")

# Each key's marker; its time is that of the last use.
LAST_USE = "compile-cache-last-use"
UNUSED_SECONDS = 30 * 24 * 3600.0

# What this process has set for another device before; not the user's.
_set_here: set[str] = set()

# What a folder must have room for; the kernels of a small network take more.
PROBE_BYTES = 2**20


def use_compile_cache(folder: Path, device: torch.device) -> Path | None:
    """Let torch.compile keep its results in a folder, and find there what earlier processes compiled.

    Call it before the first compilation. Keys that have not been used for 30 days are removed. A
    TORCHINDUCTOR_CACHE_DIR or TRITON_CACHE_DIR that the user has set stays.

    Returns:
        Where the results are kept; None if the folder cannot be used. A warning then says why, and PyTorch's own
        temporary folder stays in use.
    """
    if own := _set_by_user("TORCHINDUCTOR_CACHE_DIR"):
        return Path(own).absolute()
    try:
        # Absolute, because the processes that compile may have another current folder.
        folder = Path(os.path.realpath(folder))
        path = folder / _key(device)
        _check_name(path)
        path.mkdir(parents=True, exist_ok=True)
        (path / LAST_USE).touch()
        # First, because it makes room.
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
    # PyTorch reads them at each compilation, and hands them to the processes that compile.
    triton = _set_by_user("TRITON_CACHE_DIR")
    _set_here.update((str(path / "inductor"), str(path / "triton")))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path / "inductor")
    if not triton:
        os.environ["TRITON_CACHE_DIR"] = str(path / "triton")
    return path


def _set_by_user(variable: str) -> str | None:
    """Return the variable's value unless it is PyTorch's default, which importing torch._dynamo writes there."""
    value = os.environ.get(variable)
    if not value or value in _set_here or value.startswith(str(Path(tempfile.gettempdir()) / "torchinductor_")):
        return None
    return value


def _key(device: torch.device) -> str:
    """Return the file name of what this process can load: readable first, then a digest."""
    processor, details = _processor()
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} sm{major}{minor}"
    else:
        name = f"{device.type} {processor}"
    # The processor matters beside a GPU too: there the C compiler builds what launches the kernels.
    digest = hashlib.sha256("\n".join([platform.machine(), *platform.libc_ver(), details]).encode())
    for folder in COMPILED:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"\0{file.relative_to(folder.parent).as_posix()}\0".encode() + file.read_bytes())
    parts = [f"torch-{torch.__version__}", f"python-{platform.python_version()}", name, digest.hexdigest()[:16]]
    return "_".join(re.sub(r"[^A-Za-z0-9.+]+", "-", part) for part in parts)


def _processor() -> tuple[str, str]:
    """Return the processor's name, and what it can do: PyTorch compiles for exactly that (-march=native).

    Virtual machines give different processors one name, and code of one stops with SIGILL on the other.
    """
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")
    except OSError:
        return platform.processor() or platform.machine(), ""
    lines = [line for line in first.splitlines() if re.match(r"(vendor|cpu family|model|flags|Features|CPU )", line)]
    named = re.search(r"^model name\s*:\s*(.+)$", first, re.MULTILINE)
    return named[1] if named else platform.machine(), "\n".join(lines)


def _check_name(path: Path) -> None:
    """Check that the compiler takes the path.

    Raises:
        OSError: it does not.
    """
    if re.search(r"[\s'\"\\]", str(path)):
        raise OSError(errno.EINVAL, "the C compiler's command takes no white space or quotes in a path")


def _check(path: Path) -> None:
    """Check that results can be written there and loaded.

    Raises:
        OSError: they cannot.
    """
    # Results are libraries.
    if hasattr(os, "statvfs") and os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise OSError(errno.EACCES, "it is mounted with noexec")
    with tempfile.NamedTemporaryFile(dir=path) as file:
        # Random, because a file system may keep zeros without room.
        file.write(os.urandom(PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _remove_unused(current: Path) -> None:
    """Remove the keys beside the current one that have not been used for 30 days; other processes may do the same."""
    for path in current.parent.glob("torch-*"):
        try:
            unused = time.time() - (path / LAST_USE).stat().st_mtime
        except OSError:
            # No key, or another process has just removed it.
            continue
        if path != current and unused > UNUSED_SECONDS:
            # The marker goes last: a removal that is cut short is finished by the next.
            for name in ("inductor", "triton"):
                shutil.rmtree(path / name, ignore_errors=True)
            shutil.rmtree(path, ignore_errors=True)
