"""Calls of the servers, with a login or without."""

import base64
import http.client
import json
from urllib.parse import urlsplit

import websockets.sync.client

from tests.docker.stack import GOOD

PREFECT = ("admin", GOOD["PREFECT_PASSWORD"])
MLFLOW = ("admin", GOOD["MLFLOW_PASSWORD"])


def ask(page, path, method="GET", login=None, body=None, headers=()):
    """Return the status and the content of an answer; the path is sent as it is, `..%2f` and all."""
    headers = {"Content-Type": "application/json", **dict(headers)}
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    connection = http.client.HTTPConnection(urlsplit(page).netloc, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def status(*arguments, **options):
    return ask(*arguments, **options)[0]


def every_route(app):
    for route in app.routes:
        yield route
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(inner, "routes"):
            yield from every_route(inner)


def lets_in(address, token):
    """Whether a socket of Prefect's answers success to a token."""
    try:
        with websockets.sync.client.connect(address, subprotocols=["prefect"]) as socket:
            socket.send(json.dumps({"type": "auth", "token": token}))
            return json.loads(socket.recv(10))["type"] == "auth_success"
    except websockets.exceptions.WebSocketException:
        return False
