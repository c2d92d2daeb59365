"""The connection to the MLflow store: its address, a check that it answers, and its web pages.

An address may include a user and a password. They are removed from a server's address before MLflow gets it, and no
message shows them.
"""

import errno
import math
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.files import disk_refusal, naming, replaced_files
from diffusion_core.locks import exclusive_lock

ARTIFACTS = "mlartifacts"
DEFAULT_STORE = Path("mlflow.db")
LOCAL_PAGES = "http://127.0.0.1:5000"
SECONDS_TO_ANSWER = 5

# SQLite's errors of a file or its disk. A store that another process locks is not one of them.
DISK_ERRORS = (
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
)

SERVER_ERRORS = 500
# While credentials change (401, 403), after a timeout (408) and after too many requests (429).
TRY_AGAIN = (401, 403, 408, 429)

VARIABLES = "DIFFUSION_TRACKING_URI (or MLFLOW_TRACKING_URI)"


class NoStore(UserError):
    """There is no tracking store yet."""


def tracking_uri(environment: Environment) -> str:
    """Return the tracking URI: DIFFUSION_TRACKING_URI, else MLFLOW_TRACKING_URI, else ./mlflow.db."""
    own = environment.tracking_uri and environment.tracking_uri.get_secret_value()
    # Absolute, because MLflow caches stores by address, and a relative one would refer to the first working directory.
    return own or os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(DEFAULT_STORE.absolute())


def store_name(environment: Environment) -> str:
    """Return a name of the store and its experiment, without credentials; two stores have different names."""
    return f"{without_userinfo(tracking_uri(environment))}, experiment {environment.experiment!r}"


@contextmanager
def sent_once() -> Iterator[None]:
    """Let MLflow send each request of the block once. It would repeat one whose answer was lost, and make two runs."""
    variable = MLFLOW_HTTP_REQUEST_MAX_RETRIES.name
    before = os.environ[variable]
    os.environ[variable] = "0"
    try:
        yield
    finally:
        os.environ[variable] = before


def connect(environment: Environment, *, may_create: bool = True) -> MlflowClient:
    """Set MLflow's tracking store to that of this environment, and return its client.

    Creates a new SQLite store if needed and permitted, which takes a few seconds.

    Raises:
        NoStore: the database does not exist or is empty, and `may_create` is false.
        Unavailable: the store does not answer within about ten seconds; the message names the variables.
        UserError: the store refuses the request, or the address is invalid.
    """
    uri = tracking_uri(environment)
    shown = without_userinfo(uri)
    try:
        if is_server(uri):
            _use_credentials(uri)
            uri = shown
            _check_server(uri)
        else:
            _check_database(uri, may_create)
        mlflow.set_tracking_uri(uri)
        client = MlflowClient()
        client.search_experiments(max_results=1)
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError, HTTPException, ValueError) as error:
        if (refusal := store_refusal(error, environment)) is not None:
            raise refusal from None
        why = str(getattr(error, "reason", reason(error))).replace(uri, shown).partition("\n")[0]
        kind = Unavailable if _is_down(error) else UserError
        raise kind(f"the tracking store {shown} cannot be used ({why}): start it, or correct {VARIABLES}") from None
    return client


@contextmanager
def answering(environment: Environment) -> Iterator[None]:
    """Convert transient errors of the store in the block to `Unavailable`, and its other ones to `UserError`.

    Raises:
        Unavailable: the store stopped answering; the whole block can be run again.
        UserError: the store refuses a request, or the disk of a local store is full or read-only; the whole block can
            be run again too.
        OSError: an error of another file.
    """
    try:
        with naming(artifact_folder(tracking_uri(environment))):
            yield
    except (MlflowException, OSError) as error:
        if (refusal := store_refusal(error, environment)) is not None:
            raise refusal from None
        shown = without_userinfo(tracking_uri(environment))
        if is_transient(error):
            raise Unavailable(
                f"the tracking store {shown} stopped answering ({reason(error)}): start it and run this again"
            ) from None
        if isinstance(error, OSError):
            raise
        raise UserError(
            f"the tracking store {shown} refuses a request ({reason(error)}): correct that in MLflow and run this again"
        ) from error


def store_refusal(error: Exception, environment: Environment) -> UserError | None:
    """Return the error to raise where the disk of a local store is full or read-only, or None for another error."""
    if isinstance(error, OSError):
        return disk_refusal(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = getattr(cause, "orig", cause.__cause__)
    # The low byte is the kind of error; the others say more about it.
    if cause is None or getattr(cause, "sqlite_errorcode", 0) & 0xFF not in DISK_ERRORS:
        return None
    shown = without_userinfo(tracking_uri(environment))
    return UserError(
        f"the disk refuses the tracking store {shown} ({cause}): correct {VARIABLES}, make room or correct its rights"
    )


def is_transient(error: MlflowException | OSError) -> bool:
    """Return whether an error of the connection or the store is transient, so that the same call may succeed later.

    A refused request is not transient, and neither is an error of a file.
    """
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return status >= SERVER_ERRORS or status in TRY_AGAIN
    return error.filename is None


def _is_down(error: Exception) -> bool:
    """Return whether a store did not answer; the status codes in `TRY_AGAIN` are answers."""
    if isinstance(error, HTTPError):
        return error.code >= SERVER_ERRORS
    if isinstance(error, MlflowException):
        return bool(error.get_http_status_code() >= SERVER_ERRORS)  # type: ignore[no-untyped-call]
    if isinstance(error, OSError):
        return error.filename is None
    # SQLite has no server.
    return isinstance(error, sqlalchemy.exc.OperationalError) and "sqlite" not in str(type(error.orig))


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return str(error).partition("\n")[0] or type(error).__name__


def is_server(uri: str) -> bool:
    """Return whether `uri` is the address of an MLflow server, not of a database."""
    # Not by urlsplit, which raises an error for an invalid one: `connect` reports that.
    return uri.lower().startswith(("http://", "https://"))


def artifact_folder(uri: str) -> Path:
    """Return the folder of a database's artifacts: `mlartifacts` next to an SQLite file, else in this folder."""
    file = sqlite_file(uri)
    return (Path() if file is None else file.parent).absolute() / ARTIFACTS


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite database, or None for another store or an invalid address."""
    if is_server(uri):
        return None
    try:
        url = sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database)


def _sqlite_uri(file: Path) -> str:
    """Return the address of an SQLite file."""
    # A question mark ends the path, so one in a folder above must not be written.
    return f"sqlite:///{os.path.relpath(file) if '?' in str(file) else file}"


def run_page(environment: Environment, experiment: str, run: str) -> str:
    """Return the address of a run's page: on the tracking server or, for a database, on this machine."""
    uri = tracking_uri(environment)
    # The page is printed, and kept in Prefect's database.
    pages = without_userinfo(environment.tracking_page or (uri if is_server(uri) else LOCAL_PAGES))
    # MLflow's pages would open in their mode for language models.
    return f"{pages.rstrip('/')}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def _use_credentials(uri: str) -> None:
    try:
        parts = urlsplit(uri)
    except ValueError:
        # Its message may show the password.
        raise ValueError("it is not an address") from None
    if parts.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    if parts.password:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)


def _check_server(uri: str) -> None:
    """Send one request, because MLflow's client retries for minutes."""
    try:
        urlopen(f"{uri.rstrip('/')}/health", timeout=SECONDS_TO_ANSWER).close()
    except HTTPError as answer:
        # A proxy may protect this path; the caller's next request checks the server.
        answer.close()


def _create_database(file: Path) -> None:
    """Create an SQLite store, all of it or nothing: MLflow cannot use what a full disk or a kill leaves of one."""
    with exclusive_lock(file.with_name(f".{file.name}.lock"), seconds=math.inf):
        if not file.exists():
            with replaced_files([file]) as folder:
                MlflowClient(_sqlite_uri(folder.absolute() / file.name)).search_experiments(max_results=1)


def _check_database(uri: str, may_create: bool) -> None:
    """Connect once, because MLflow waits minutes for a database that does not exist."""
    file, url = sqlite_file(uri), sqlalchemy.make_url(uri)
    missing = NoStore(f"the tracking store {without_userinfo(uri)} does not exist: name yours in {VARIABLES}")
    if file is not None and not file.exists():
        if not file.parent.is_dir():
            # SQLite has one error for this and for a disk that refuses.
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(file.parent))
        if not may_create:
            raise missing
        _create_database(file)
    limit = {"connect_timeout": SECONDS_TO_ANSWER} if url.get_backend_name() in ("postgresql", "mysql") else {}
    engine = sqlalchemy.create_engine(url, connect_args=limit)
    try:
        tables = sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if not (tables or may_create):
        raise missing
