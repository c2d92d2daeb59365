"""Find a model by what people call it: a folder, a version of a registered model, or the run that made it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS, model_digest
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.version_names import registered_name
from diffusion_core.registry.versions import MODEL_DIGEST, RUN_ID, downloaded, find_made, find_named


@dataclass(frozen=True)
class NamedModel:
    """A model that was found.

    Attributes:
        name: `NAME/NUMBER` of a version, or the folder, without what lies outside of this project.
        kind: "version" or "folder".
        digest: sha256 of its files.
        files: opens a folder with its files.
    """

    name: str
    kind: Literal["version", "folder"]
    digest: str
    files: Callable[[], AbstractContextManager[Path]]

    @property
    def named(self) -> dict[str, str]:
        """Name, kind and digest, as model.json has them of the model that a training began from."""
        return {"name": self.name, "kind": self.kind, "digest": self.digest}


def find_model(environment: Environment, name: str) -> NamedModel:
    """Find a model, without its files where the tracking store has them.

    Args:
        environment: the environment, with the store and the registered model.
        name: a folder with model.safetensors and model.json; or `NAME@ALIAS` or `NAME/NUMBER` of a registered model.
            An alias or number alone is of the environment's model. The id of a run means the version that it made.

    Raises:
        UserError: there is no such folder, version or run.
        Unavailable: the tracking store does not answer.
    """
    folder = _folder(name)
    if folder is not None:
        if missing := [each for each in (DESCRIPTION, WEIGHTS) if not (folder / each).is_file()]:
            raise UserError(f"{folder} has no {missing[0]}: name a folder that `train` or `diffusion import` wrote")
        return NamedModel(_public(folder), "folder", model_digest(folder), lambda: nullcontext(folder))
    client = connect(environment, may_create=False)
    try:
        with answering(environment):
            if RUN_ID.fullmatch(name):
                version = find_made(client, name)
            else:
                version = find_named(client, *registered_name(environment, name))
    except Unavailable:
        raise
    except UserError as error:
        raise UserError(f"{error}; there is no folder {name} either") from None

    @contextmanager
    def fetched() -> Iterator[Path]:
        with answering(environment), downloaded(version) as files:
            yield files

    return NamedModel(f"{version.name}/{version.version}", "version", str(version.tags.get(MODEL_DIGEST)), fetched)


def _folder(name: str) -> Path | None:
    """Return the folder of this name, or None if there is none."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    # The user of ~user is not known, or the name is longer than a disk permits.
    except (RuntimeError, OSError):
        return None


def _public(folder: Path) -> str:
    here = Path.cwd().resolve()
    folder = folder.resolve()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else folder.name
