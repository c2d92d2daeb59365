import pytest

from tests.registry.projects import new_environment


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A new store, and the project's folder as the current one."""
    monkeypatch.chdir(tmp_path)
    return new_environment(tmp_path)
