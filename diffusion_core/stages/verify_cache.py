"""The part of `diffusion verify` that looks at DVC's cache and at the outputs in the checkout."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.dvc_cache import Cache, dvc_cache
from diffusion_core.lineage.hashed_files import FOLDER
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS
from diffusion_core.lineage.needed import Output
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.outputs import Named, named_by_versions, versions_of
from diffusion_core.stages.finding import REPAIR, Finding, Hashed, parts
from diffusion_core.stages.paths import MODELS

Download = Callable[[], AbstractContextManager[Path]]


def verify_cache(environment: Environment, repair: bool, hashed: Hashed) -> Iterator[Finding]:
    """Look at the entries of DVC's cache that are needed, and at the files of the checkout's outputs."""
    named = _named(environment)
    with dvc_cache() as cache:
        needed = cache.needed(named.outputs, named.commits)
        # Only a whole list says which entries its output needs.
        lists = list(_entries(environment, cache, cache.rotten(needed.unlisted), needed.entries, repair))
        yield from lists
        if any(finding.is_repaired for finding in lists):
            needed = cache.needed(named.outputs, named.commits)
        for what, why in needed.unread.items():
            yield Finding(what, f"it cannot be read ({why}), so nothing that it names was looked at", "correct it")
        hashed.add("DVC's cache", map(cache.path, needed.entries))
        rotten = cache.rotten(needed.entries.keys() - needed.unlisted.keys())
        yield from _entries(environment, cache, rotten, needed.entries, repair)
        unchanged = cache.unchanged_files()
        hashed.add("the checkout", (file for _, file in unchanged))
        for entry, file in cache.rotten_files(unchanged):
            found = Finding(
                str(file.relative_to(Path.cwd())),
                f"its bytes changed without its time, so DVC takes it as unchanged; it is of"
                f" {needed.entries[entry].source}",
                "run `dvc fetch` and say `diffusion verify --repair`, or run `dvc repro --force` of its stage",
            )
            yield replace(found, is_repaired=repair and cache.check_out(file, entry))


def _named(environment: Environment) -> Named:
    """Return what registered versions name, as far as the store answers."""
    try:
        client = connect(environment, may_create=False)
        with answering(environment):
            named = named_by_versions(client) or Named({}, set(), set())
    except UserError:
        # The search for the champion says so. What the checkout and the branches name can be looked at without it.
        return Named({}, set(), set())
    return replace(named, commits=named.commits | named.only_commits)


def _entries(
    environment: Environment, cache: Cache, rotten: list[str], names: Mapping[str, Output], repair: bool
) -> Iterator[Finding]:
    """Yield a finding for each rotten entry of DVC's cache."""
    in_remote: set[str] = set()
    remote, remedy = "the remote does not have it" if cache.has_remote else "no remote is configured", ""
    try:
        in_remote = cache.remote_has(rotten)
    except UserError as error:
        remote, remedy = parts(error)
    for entry in rotten:
        output, why, helps, is_repaired = names[entry], remote, remedy, False
        versions = _versions(environment, entry, output)
        sources = ["the checkout"] if cache.checked_out(entry) is not None else []
        sources += ["the remote"] if entry in in_remote else []
        sources += versions
        if repair:
            try:
                is_repaired = cache.restore(entry, entry in in_remote)
            except UserError as error:
                why, helps = parts(error)
            for download in versions.values():
                is_repaired = is_repaired or _restored(environment, cache, entry, output, download)
        what = f"the list of files of {output}" if entry.endswith(FOLDER) else f"the copy of {output}"
        problem = f"{what} does not have the hash in its name"
        if is_repaired or (sources and not repair):
            # A stage may have made it again since the first look.
            source = next(iter(sources), "the checkout")
            yield Finding(str(cache.path(entry)), f"{problem}, and {source} has it", REPAIR, is_repaired)
            continue
        if entry in in_remote and not helps:
            why = "that of the remote has rotted too"
        # DVC takes a rotten entry for whole, and would put it over the good file that a stage makes.
        lost = f"remove this file, and then {output.again}"
        yield Finding(
            str(cache.path(entry)),
            f"{problem}, neither the checkout nor a registered version has it whole, and {why}",
            f"{helps} and {REPAIR}, or {lost}" if helps else lost,
        )


def _versions(environment: Environment, entry: str, output: Output) -> dict[str, Download]:
    """Return the registered versions that have a file of the model, as far as the store answers."""
    if Path(output.path) not in (MODELS / WEIGHTS, MODELS / DESCRIPTION):
        return {}
    try:
        client = connect(environment, may_create=False)
        with answering(environment):
            return versions_of(client, Path(output.path), entry)
    except UserError:
        # The search for the champion says so.
        return {}


def _restored(environment: Environment, cache: Cache, entry: str, output: Output, download: Download) -> bool:
    """Replace a rotten entry by the file of a version, and return whether it is sound now."""
    # If the version has rotted too, the next one may be whole.
    with suppress(UserError), answering(environment), download() as folder:
        return cache.restore_from(entry, folder / Path(output.path).name)
    return False
