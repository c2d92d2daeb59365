"""Endpoints, devices and credentials, from environment variables, `.env` and mounted secrets.

They change results only by rounding. Secrets are `SecretStr`, and never parameters, tags or log lines.
"""

import logging
import os
import re
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal

from dotenv.parser import parse_stream
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from diffusion_core.errors import UserError
from diffusion_core.problems import hint

logger = logging.getLogger(__name__)

PREFIX = "DIFFUSION_"
# How near to the prefix another one must be to count as misspelled: DIFUSION is, DIFFUSERS and INFUSION are not.
NEAR = 0.85
# How the address of a tracking store begins; a database's may name a driver too, as in postgresql+psycopg2.
STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
# Variables of deployments (prefect.yaml, docs/operate.md) and of MLflow's model server, not of stages.
DEPLOYMENT = (*("IMAGE", "NAMESPACE", "NETWORK", "PYFUNC_IMAGES", "PYFUNC_STEPS", "REPOSITORY", "REVISION", "SECRETS"),)
# Variables that Kubernetes sets for each service of a namespace.
OF_A_SERVICE = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP)|$)")
# Words for pydantic's error types.
WORDS = {
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "string_pattern_mismatch": "the tag `threads` of a run",
}

# The first number, then each other one after the steps before it: 2 4:1 7:2.
ThreadsUsed = Annotated[str, Field(pattern=r"^[1-9]\d*( [1-9]\d*:[1-9]\d*)+$")]


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise PydanticCustomError("home", "a path without the ~ of a user whom this machine does not know") from None


# With the folder that `~` means.
Expanded = Annotated[Path, AfterValidator(_expanded)]

DOTENV = Path(".env")

# Containers mount secrets here, one file each with the name of the variable, for example diffusion_s3_secret_key.
SECRETS = Path("/run/secrets")


class Environment(BaseSettings):
    """The environment of the pipeline; the variable of a field is `DIFFUSION_` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=DOTENV,
        env_ignore_empty=True,
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
        extra="ignore",
        frozen=True,
    )

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="the network's kernels by torch.compile; auto: on a CUDA GPU"
    )
    compile_cache: Expanded = Field(
        default=Path(".cache/compile"), description="a folder for compiled kernels, kept for the next process"
    )
    threads: Literal["auto"] | PositiveInt | ThreadsUsed = Field(
        default="auto",
        description="of the processor that training uses; auto: as many as are fastest; or those of another training",
    )
    processes: Literal["auto"] | PositiveInt = Field(
        default=1, description="that share a stage's work on this machine; auto: one a GPU"
    )
    sample_batch_size: PositiveInt = 100
    checkpoint_seconds: PositiveFloat = Field(default=300.0, description="a checkpoint at least this often")
    tracking_uri: SecretStr | None = Field(
        default=None, description="may hold a password; else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    tracking_page: str | None = Field(
        default=None, description="where people open MLflow's pages, if not on the server"
    )
    experiment: str = "diffusion"
    registered_model: str = "diffusion"
    checkpoints: Expanded = Field(
        default=Path(".checkpoints"), description="a folder that outlives the checkout, where each run has a new one"
    )
    keep_checkpoints: int = Field(
        default=2, ge=2, description="number of the newest checkpoints to keep; one alone could be damaged"
    )
    keep_every_images: PositiveInt | None = Field(
        default=None, description="a checkpoint to keep for good, each time that this number of images was trained on"
    )
    checkpoint_copies: str | None = Field(
        default=None,
        description="s3://bucket/prefix for copies of checkpoints, where disks are lost with their machines",
    )
    downloads: Expanded | None = Field(
        default=None,
        description="a folder that outlives the checkout, for what is fetched; else .cache/downloads for web files",
    )
    ray_address: str | None = Field(default=None, description="host:port of a Ray cluster that decodes images")
    s3_endpoint: str | None = Field(default=None, description="http://host:port of a store that is not Amazon's")
    s3_region: str | None = None
    s3_access_key: SecretStr | None = Field(
        default=None, description="with s3_secret_key; else what boto3 finds by itself: AWS_ variables, ~/.aws, a role"
    )
    s3_secret_key: SecretStr | None = None
    notify: SecretStr | None = Field(
        default=None, description="addresses that get a message of each run, as Apprise writes them; spaces between"
    )
    serve_token: SecretStr | None = Field(
        default=None,
        description="that clients of `diffusion serve-model` send; without it, only this machine's may ask",
    )
    serve_batch: PositiveInt = Field(default=16, description="images that are sampled together for clients")
    serve_queue: PositiveInt = Field(default=32, description="images that clients wait for, at most: more get 429")
    serve_images: PositiveInt = Field(default=64, description="of one client's request, at most")
    serve_steps: PositiveInt = Field(default=250, description="of a client's sampler, at most")
    serve_seconds: PositiveFloat = Field(default=120.0, description="until a client's request is answered")
    serve_follow_seconds: PositiveFloat = Field(default=10.0, description="between two looks at the served alias")
    max_hours: PositiveFloat | None = Field(
        default=None, description="of a run: the flow then ends, and its training resumes in the next run"
    )
    dvc_remote: str | None = Field(default=None, description="s3://bucket/prefix of the outputs that machines share")
    dvc_cache: Expanded | None = Field(default=None, description="a folder that several checkouts keep outputs in")


def load_environment() -> Environment:
    """Read the environment.

    Raises:
        UserError: a variable has an invalid value, or a name that is similar to a known one; or a line of `.env` is not
            a variable.
    """
    _refuse_misspelled()
    try:
        environment = Environment()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = problems[0]
        # A union reports one problem per type; the first part of the location is the field's name.
        field = first["loc"][0]
        wanted = " or ".join(
            WORDS.get(each["type"], each["msg"].removeprefix("Input should be "))
            for each in problems
            if each["loc"][0] == field
        )
        raise UserError(f"{PREFIX}{str(field).upper()} is {first['input']!r}: it must be {wanted}") from None
    if environment.tracking_uri is not None:
        _check_store(environment.tracking_uri.get_secret_value())
    return environment


def _check_store(uri: str) -> None:
    """Check how the address of the tracking store begins, before a training needs the store.

    Raises:
        UserError: no store has such an address; the message shows nothing after its scheme, because it may be a secret.
    """
    found = re.match(r"([A-Za-z][\w.-]*)(\+[\w.-]+)?://", uri)
    scheme = found[1].lower() if found else ""
    if scheme in STORES:
        return
    known = ", ".join(f"{each}://" for each in STORES)
    question = hint(scheme, STORES).rstrip()
    raise UserError(f"{PREFIX}TRACKING_URI must begin with one of {known}{': ' if question else ''}{question}")


def _refuse_misspelled() -> None:
    """Raise an error for an unknown variable similar to a known one, and warn about others with this prefix.

    A name in small letters is misspelled too: shells, Prefect and DVC take it for another variable. Variables that
    Kubernetes sets for its services may have this prefix and are ignored.

    Raises:
        UserError: an unknown variable is similar to a known one.
    """
    known = [*(name.upper() for name in Environment.model_fields), *DEPLOYMENT]
    for name in sorted({*os.environ, *_names_in_dotenv()}):
        start, _, rest = name.upper().partition("_")
        if not (rest and get_close_matches(start, [PREFIX[:-1]], cutoff=NEAR)) or OF_A_SERVICE.search(rest):
            continue
        if name == PREFIX + rest and rest in known:
            continue
        nearest = get_close_matches(rest, known, n=1, cutoff=0.0)[0]
        if get_close_matches(rest, [nearest], cutoff=0.8):
            raise UserError(f"{name} is not known: did you mean {PREFIX}{nearest}?")
        if start == PREFIX[:-1]:
            logger.warning("%s is not known and changes nothing; the nearest is %s%s", name, PREFIX, nearest)


def _names_in_dotenv() -> list[str]:
    """Return the names of the variables in `.env`.

    Raises:
        UserError: a line is not a variable; the message does not show it, because it may be a secret.
    """
    if not DOTENV.is_file():
        return []
    try:
        lines = list(parse_stream(StringIO(DOTENV.read_text(encoding="utf-8"))))
    except UnicodeDecodeError:
        raise UserError(f"{DOTENV} is not text in UTF-8: save it in that encoding") from None
    for each in lines:
        if each.error or (each.key is not None and each.value is None):
            # What was parsed begins with the empty lines before.
            text = each.original.string
            line = each.original.line + text[: len(text) - len(text.lstrip())].count("\n")
            raise UserError(f"line {line} of {DOTENV} is not a variable: write NAME=value, and close its quotes")
    return [each.key for each in lines if each.key is not None]
