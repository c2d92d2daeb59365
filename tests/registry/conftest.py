import pytest

from tests.registry.projects import new_environment


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A new store, and the project's folder as the current one."""
    monkeypatch.chdir(tmp_path)
    # MLflow sets this variable when it is told of a store.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    return new_environment(tmp_path)
