"""The object store: the buckets that the settings name."""

from collections.abc import Iterator, Mapping

from diffusion_core.address import parse_s3
from diffusion_core.config.environment import Environment
from diffusion_core.config.params import PARAMS_FILE, load_settings
from diffusion_core.data.sources.s3 import S3
from diffusion_core.doctor.diagnosis import Diagnosis, of_error, ok, problem
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.storage import Patience, Store, open_store

PATIENCE = Patience(connect_seconds=3.0, read_seconds=4.0, attempts=1)


def object_store(environment: Environment) -> Iterator[Diagnosis]:
    """Check that the store answers, knows the keys and has the buckets."""
    addresses = {
        "DIFFUSION_DVC_REMOTE": environment.dvc_remote,
        "DIFFUSION_CHECKPOINT_COPIES": environment.checkpoint_copies,
        "ingest.source.url": _source(),
    }
    names: dict[str, list[str]] = {}
    for name, address in addresses.items():
        try:
            if address:
                names.setdefault(parse_s3(address).bucket, []).append(name)
        except ValueError as error:
            yield problem(f"{name}: {error}", "correct it")
    if not names:
        yield ok("no bucket is named")
        return
    try:
        store = open_store(environment, PATIENCE)
    except UserError as error:
        yield of_error(error)
        return
    # What is wrong with the keys is so for every bucket.
    yield from dict.fromkeys(_asked(store, names))


def _asked(store: Store, names: Mapping[str, list[str]]) -> Iterator[Diagnosis]:
    """Ask for each bucket, which the settings in the list name."""
    for bucket, wanted in names.items():
        try:
            store.check(bucket)
            yield ok(f"the store {store.name} answers, and the bucket {bucket} ({', '.join(wanted)}) can be listed")
        except Unavailable as error:
            # Each further bucket would take as long.
            yield of_error(error)
            return
        except UserError as error:
            yield of_error(error)


def _source() -> str | None:
    """Return the bucket of the images, or None if there is none; `params` reports a file that cannot be read."""
    try:
        source = load_settings().ingest.source if PARAMS_FILE.exists() else None
    except UserError:
        return None
    return source.url if isinstance(source, S3) else None
