import socket

import pytest

from tests.registry.projects import new_environment


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A new store, and the project's folder as the current one."""
    monkeypatch.chdir(tmp_path)
    return new_environment(tmp_path)


@pytest.fixture
def silent_port():
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]
