"""DVC: locks of commands that died, and a configuration that is not that of the environment."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from configobj import ConfigObj, ConfigObjError

from diffusion_core.address import parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, of_error, ok, problem, warning
from diffusion_core.errors import UserError
from diffusion_core.locks import is_held
from diffusion_core.stages.remote import AWS_CONFIG, CONFIG, DVC, PROFILE, read_config, remote_options

LOCK = DVC / "tmp/lock"
RWLOCK = DVC / "tmp/rwlock"


def dvc_locks(_: Environment) -> Iterator[Diagnosis]:
    """Check for locks of DVC's commands that have died. DVC's usual lock ends with its process."""
    if not DVC.is_dir():
        return
    found = [*_repository_lock(), *_paths_lock()]
    yield from found or [ok("no lock of DVC is left of a command that died")]


def dvc_config(environment: Environment) -> Iterator[Diagnosis]:
    """Check that DVC's own configuration has the address and keys of the environment."""
    if not (DVC.is_dir() and environment.dvc_remote):
        return
    try:
        options = read_config().get('remote "store"', {})
        wanted = remote_options(str(parse_s3(environment.dvc_remote)), environment)
    except UserError as error:
        yield of_error(error)
        return
    except ValueError as error:
        yield problem(f"DIFFUSION_DVC_REMOTE: {error}", "correct it")
        return
    other = sorted(name for name in {*wanted, *options} if wanted.get(name) != options.get(name))
    if not options:
        yield warning(f"DVC does not use {environment.dvc_remote} in this checkout", "run `diffusion remote`")
    elif other:
        yield warning(
            f"{CONFIG} has other values than the environment for {', '.join(other)}", "run `diffusion remote`"
        )
    else:
        yield ok(f"DVC shares outputs by {environment.dvc_remote}, with the environment's keys")


def checksums(environment: Environment) -> Iterator[Diagnosis]:
    """Check that nothing makes DVC and MLflow send Amazon's newer checksums to another store, which may refuse them."""
    if not environment.s3_endpoint:
        return
    names = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")
    wrong = [name for name in names if os.environ.get(name, "when_required").lower() != "when_required"]
    for name in wrong:
        yield warning(
            f"{name} asks for checksums that stores other than Amazon's may refuse",
            f"unset it, or `{name}=when_required`",
        )
    other = os.environ.get(AWS_CONFIG)
    if environment.dvc_remote and other and Path(other).absolute() != PROFILE.absolute():
        yield warning(
            f"{AWS_CONFIG} is another file than {PROFILE}, so DVC may send such checksums",
            f"unset it where you call dvc yourself, or `{AWS_CONFIG}={PROFILE}`",
        )
    elif not wrong:
        yield ok("checksums are sent to the store only where it requires them")


def cache_folder(environment: Environment) -> Path:
    """Return the folder of DVC's cache: the environment's, that of DVC's configuration, or DVC's own."""
    if environment.dvc_cache:
        return environment.dvc_cache
    for file in (CONFIG, DVC / "config"):
        with suppress(ConfigObjError, UnicodeDecodeError, AttributeError):
            if folder := ConfigObj(str(file), encoding="utf-8", interpolation=False).get("cache", {}).get("dir"):
                return DVC / str(folder)
    return DVC / "cache"


def _repository_lock() -> Iterator[Diagnosis]:
    """Look at the lock of the whole repository.

    By default the system releases it with its process. With `core.hardlink_lock` it is a link that stays, to a file
    whose name it has as its content, and it does not name its process.
    """
    try:
        content = LOCK.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return
    if content.endswith(".lock"):
        process = next(_commands(), None)
        if process is None:
            yield problem(
                f"{LOCK} is the lock of a DVC command that died, or of one on another machine",
                f"if no dvc works here on another machine either, `rm {LOCK}`",
            )
        else:
            yield ok(f"a DVC command works here (process {process})")
    elif is_held(LOCK):
        yield ok(f"a DVC command works here (process {content})")


def _paths_lock() -> Iterator[Diagnosis]:
    """Look at the locks of single paths; DVC drops those whose process number no process has."""
    try:
        content = json.loads(RWLOCK.read_text(encoding="utf-8"))
        infos = [*content.get("write", {}).items()]
        infos += [(path, info) for path, several in content.get("read", {}).items() for info in several]
        holders = {(int(info["pid"]), str(info["cmd"])): path for path, info in infos}
        living = {process for process, _ in holders if psutil.pid_exists(process)}
    except FileNotFoundError:
        return
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        yield problem(
            f"{RWLOCK} is damaged, and every DVC command will refuse it", f"see that no dvc works, and `rm {RWLOCK}`"
        )
        return
    for (process, command), path in holders.items():
        if process not in living:
            yield warning(
                f"{RWLOCK} locks {path} for `{command[:80]}`, which died (process {process})",
                "nothing: the next DVC command drops it",
            )
        elif _is_other(process):
            yield problem(
                f"{RWLOCK} locks {path} for `{command[:80]}`, which died; another process has its number {process}",
                f"see that no dvc works here, and `rm {RWLOCK}`",
            )


def _commands() -> Iterator[int]:
    """Return the processes of DVC that work in this folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if not _is_other(process.pid) and Path(process.cwd()) == Path.cwd():
                yield process.pid


def _is_other(process: int) -> bool:
    """Return whether a process is not one of DVC."""
    try:
        words = psutil.Process(process).cmdline()
    except psutil.Error:
        return False
    return not any(Path(word).name == "dvc" for word in words)
