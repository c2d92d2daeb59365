"""Decodes files on a Ray cluster, with the same functions and the same results as one machine.

The files travel with the tasks, so that no node needs data/raw. A task whose node is lost runs again on another one.
"""

import os
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from diffusion_core.data.decode import Decoded
from diffusion_core.data.decoding import Decoding
from diffusion_core.data.raw import RawFile
from diffusion_core.data.workers import alone, decode_file, in_chunks, too_small
from diffusion_core.errors import Unavailable, UserError

PACKAGE = Path(__file__).parents[1]
# Times that a task runs again after its process or node died. Many files are tried once more, and then one by one.
RETRIES_TOGETHER, RETRIES_APART = 1, 4
# Tasks for each processor of the cluster that run or wait at the same time.
TASKS = 2
SECONDS_TO_ANSWER = 5.0

File = tuple[str, bytes]


def decode_on_cluster(
    folder: Path, files: Sequence[RawFile], wanted: Decoding, address: str, libraries: Mapping[str, str]
) -> Iterator[Decoded]:
    """Yield what `decode` makes of each of `files`, in order.

    Args:
        folder: data/raw.
        files: the images.
        wanted: how to decode them.
        address: host and port of the cluster's head node.
        libraries: the libraries that decide the pixels, with their versions here.

    Raises:
        UserError: Ray is not installed, has no token, or a node has other versions; memory is too small for a file.
        Unavailable: the cluster does not answer, or fails.
    """
    if not files:
        return
    if find_spec("ray") is None:
        raise UserError("DIFFUSION_RAY_ADDRESS is set, and Ray is not installed: install diffusion-core[ray]")
    _demand_token()
    _check_answer(address)
    # Only now, because it reads its settings when it is imported.
    import ray

    try:
        ray.init(address, runtime_env={"py_modules": [str(PACKAGE)]}, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise Unavailable(f"the Ray cluster at DIFFUSION_RAY_ADDRESS cannot be used ({error})") from None
    try:
        yield from _decode(folder, files, wanted, libraries)
    finally:
        ray.shutdown()


def _decode(
    folder: Path, files: Sequence[RawFile], wanted: Decoding, libraries: Mapping[str, str]
) -> Iterator[Decoded]:
    import ray
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayError,
        RayTaskError,
        WorkerCrashedError,
    )

    try:
        together = ray.remote(num_cpus=1, max_retries=RETRIES_TOGETHER)(_decode_together)
        apart = ray.remote(num_cpus=1, max_retries=RETRIES_APART)(_decode_apart)
        contents = ([(file.path, file.read(folder)) for file in chunk] for chunk in in_chunks(files))
        processors = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        if processors < 1:
            raise Unavailable("the Ray cluster has no processor for tasks: add nodes, or give them --num-cpus")
        tasks = TASKS * processors
        # The files stay with their task until it is done, because a crash sends them again.
        waiting = deque((chunk, together.remote(chunk, wanted, libraries)) for chunk in islice(contents, tasks))
        while waiting:
            chunk, task = waiting.popleft()
            try:
                results = ray.get(task)
            except (WorkerCrashedError, NodeDiedError, ObjectLostError):
                # Perhaps one of its files ends each process that decodes it.
                results = ray.get(apart.remote(chunk, wanted, libraries))
            yield from results
            waiting.extend((chunk, together.remote(chunk, wanted, libraries)) for chunk in islice(contents, 1))
    except RayTaskError as error:
        if isinstance(error.cause, MemoryError):
            raise too_small(str(error.cause)) from None
        if isinstance(error.cause, UserError):
            raise error.cause from None
        # Ray's own words where a node cannot import the task, and those of an import in it.
        if isinstance(error.cause, ImportError) or "failed to import" in str(error.cause):
            missing = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"a Ray node lacks what the project needs ({missing}): install it there too") from None
        raise
    except OutOfMemoryError:
        raise too_small(chunk[0][0]) from None
    except RayError as error:
        raise Unavailable(f"the Ray cluster fails ({error}): run prepare again when it is well") from None


def _decode_together(files: Sequence[File], wanted: Decoding, libraries: Mapping[str, str]) -> list[Decoded]:
    _check_versions(libraries)
    return [decode_file(name, content, wanted) for name, content in files]


def _decode_apart(files: Sequence[File], wanted: Decoding, libraries: Mapping[str, str]) -> list[Decoded]:
    _check_versions(libraries)
    return [alone(name, content, wanted) for name, content in files]


def _check_versions(libraries: Mapping[str, str]) -> None:
    """Check that this node has the libraries of the machine that asks, so that it makes the same pixels.

    In each task, because a node may join a cluster at any time.

    Raises:
        UserError: it has others.
    """
    for name, wanted in libraries.items():
        if (here := _version(name)) != wanted:
            has = f"no {name}" if here is None else f"{name} {here}"
            raise UserError(
                f"the Ray node {socket.gethostname()} has {has}, and the machine that prepares {wanted}: install the"
                " same on both"
            )


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _check_answer(address: str) -> None:
    """Check that a port listens, because Ray itself asks for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER):
            return
    except ValueError:
        raise UserError(f"DIFFUSION_RAY_ADDRESS is {address!r}: write host:port of the head node") from None
    except OSError as error:
        raise Unavailable(
            f"the Ray cluster at {address} does not answer ({error}): start it, or correct DIFFUSION_RAY_ADDRESS"
        ) from None


def _demand_token() -> None:
    """Let Ray authenticate by a token: a cluster without one runs the code of everyone who reaches its port."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    places = (os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH"))
    if os.environ["RAY_AUTH_MODE"] != "token":
        raise UserError("RAY_AUTH_MODE is not token: a cluster without tokens runs the code of anyone; set it to token")
    if not any(places) and not (Path.home() / ".ray/auth_token").exists():
        raise UserError("the Ray cluster needs a token: set RAY_AUTH_TOKEN, or write it to ~/.ray/auth_token")
