"""No secret of a flow's environment is in Prefect's database, whether the run succeeds or fails."""

import sqlite3
from contextlib import closing
from pathlib import Path

from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy import make_url

from tests.faults.test_secrets import CANARY, LOGIN, SECRETS
from tests.flows.runs import start_flow, with_our_server

# What a stage says to its log of an address, as a library may.
SAYS = f"print('GET http://{LOGIN}@127.0.0.1:9/a failed'); print('a line of the stage')"


def texts():
    """Return all that the database of the server holds."""
    database = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value()).database
    with closing(sqlite3.connect(Path(database))) as connection:
        return "\n".join(connection.iterdump())


def test_a_run_that_fails_and_one_that_succeeds_leave_none(prefect_server, project):
    variables = with_our_server() | SECRETS | {"DIFFUSION_TRACKING_URI": f"http://{LOGIN}@127.0.0.1:9"}
    outputs = []
    for end, code in (("raise SystemExit(2)", 1), ("", 0)):
        (project / "on_ingest.py").write_text(f"{SAYS}\n{end}\n")
        process = start_flow(variables)
        outputs.append(process.communicate()[0])
        assert process.returncode == code, outputs[-1]
    assert all("a line of the stage" in output for output in outputs)
    assert CANARY not in "".join(outputs)
    kept = texts()
    assert kept.count("a line of the stage") >= 2
    assert CANARY not in kept


def test_a_secret_that_is_planted_is_found(prefect_server):
    """The control."""
    database = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value()).database
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE planted (a)")
        connection.execute("INSERT INTO planted VALUES (?)", (CANARY,))
        connection.commit()
        try:
            assert CANARY in texts()
        finally:
            connection.execute("DROP TABLE planted")
            connection.commit()
