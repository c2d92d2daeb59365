"""Collect what a published model was made of: parameters, dvc.lock, numbers of the images, and its parent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.address import without_credentials
from diffusion_core.config.params import PARAMS_FILE
from diffusion_core.documents import read_json, read_small
from diffusion_core.errors import UserError
from diffusion_core.lineage.identity import flattened
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS
from diffusion_core.lineage.provenance import DVC_LOCK
from diffusion_core.lineage.record import RunInfo
from diffusion_core.lineage.recorded import DATA, LOCK, PARAMS, PARENT, PARENT_DIGEST, Lock, all_params
from diffusion_core.stages.paths import DATA_METRICS, MODELS, PREPARED


@dataclass(frozen=True)
class Ingredients:
    """What a model was made of.

    Attributes:
        files: texts for the run, by their paths among its artifacts.
        params: parameters of all stages but `train`, which logs its own, by dotted name.
        parent: tags that name the model that the training began from; empty if it began from random weights.
    """

    files: dict[str, str]
    params: dict[str, str]
    parent: dict[str, str]


def ingredients(info: RunInfo, hashes: Mapping[str, str]) -> Ingredients:
    """Return what models/ was made of, as far as this folder knows.

    Args:
        info: its models/run_info.json.
        hashes: see `dvc_hashes`; what differs from dvc.lock is not described by it.

    Raises:
        UserError: params.yaml or dvc.lock cannot be read.
    """
    files = {PARAMS: _text(PARAMS_FILE)} if PARAMS_FILE.exists() else {}
    lock = None
    if (MODELS / WEIGHTS).as_posix() in hashes:
        files[LOCK] = _text(DVC_LOCK)
        try:
            lock = Lock.parse(files[LOCK])
        except ValueError as error:
            raise UserError(f"{DVC_LOCK} cannot be read ({_why(error)}): restore it from git") from None
    if DATA_METRICS.as_posix() in hashes and hashes.get(PREPARED.as_posix()) == info.dataset_md5:
        files[DATA] = read_small(DATA_METRICS).decode()
    try:
        sections = all_params(files.get(PARAMS), lock)
    except ValueError as error:
        raise UserError(f"{PARAMS_FILE} cannot be read ({_why(error)}): correct it") from None
    sections.pop("train", None)
    parent = read_json(MODELS / DESCRIPTION).get("parent")
    tags = {} if parent is None else {PARENT: str(parent["name"]), PARENT_DIGEST: str(parent["digest"])}
    return Ingredients(files, flattened(sections), tags)


def _text(file: Path) -> str:
    """Return the text of a file of YAML as the store may have it.

    Raises:
        UserError: it is not text, or too large.
    """
    try:
        return without_credentials(read_small(file).decode())
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({_why(error)}): correct it") from None


def _why(error: ValueError) -> str:
    return " ".join(str(error).split())
