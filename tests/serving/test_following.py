"""The served version is the one that the alias names now, and stays where a new one cannot be loaded."""

import shutil
import time

import pytest
import torch

from diffusion_core.errors import UserError
from diffusion_core.registry.connection import connect
from diffusion_core.registry.served import aliases_by_version, load_served, version_now
from diffusion_core.registry.versions import CHAMPION, MODEL_DIGEST
from diffusion_core.serving.following import Following

CPU = torch.device("cpu")
OFTEN = 0.05


def seen(following, version, seconds=20.0):
    """Return whether the version is served within some seconds."""
    deadline = time.monotonic() + seconds
    while following.served.version != version and time.monotonic() < deadline:
        time.sleep(OFTEN)
    return following.served.version == version


@pytest.fixture
def client(environment):
    client = connect(environment)
    client.set_registered_model_alias("diffusion", CHAMPION, "1")
    yield client
    client.set_registered_model_alias("diffusion", CHAMPION, "1")


@pytest.fixture
def follow(environment):
    """Return a function that follows a version, until the test ends."""
    opened, served = [], []

    def follow(version=CHAMPION, environment=environment):
        opened.append(Following(environment, "diffusion", version, CPU, OFTEN, served.append))
        return opened[-1]

    yield follow
    for each in opened:
        each.close()


def weights(served):
    return next(iter(served.model.diffusion.model.parameters())).detach()


def test_an_alias_that_moves_is_followed_and_a_number_is_not(environment, client, follow):
    alias, number = follow(), follow("1")
    assert alias.served.version == number.served.version == "1"
    client.set_registered_model_alias("diffusion", CHAMPION, "2")
    assert seen(alias, "2")
    assert torch.equal(weights(alias.served), weights(load_served(environment, "diffusion", "2", CPU)))
    assert not torch.equal(weights(alias.served), weights(number.served))
    client.set_registered_model_alias("diffusion", CHAMPION, "1")
    assert seen(alias, "1")
    assert number.served.version == "1"


def test_a_version_whose_files_are_damaged_leaves_the_one_before(client, follow, caplog):
    following = follow()
    digest = client.get_model_version("diffusion", "2").tags[MODEL_DIGEST]
    client.set_model_version_tag("diffusion", "2", MODEL_DIGEST, "0" * 64)
    try:
        client.set_registered_model_alias("diffusion", CHAMPION, "2")
        assert not seen(following, "2", seconds=1.5)
        told = [each.getMessage() for each in caplog.records if "version 1 of diffusion stays" in each.getMessage()]
        # Once, and not at each look.
        assert len(told) == 1
        assert "not those that were registered" in told[0]
    finally:
        client.set_model_version_tag("diffusion", "2", MODEL_DIGEST, digest)
    assert seen(following, "2")


def test_a_store_that_is_gone_leaves_the_version_and_is_found_again(project, client, follow, caplog):
    folder, _ = project
    following = follow()
    database = folder / "mlflow.db"
    shutil.move(database, folder / "away")
    try:
        time.sleep(0.5)
        assert following.served.version == "1"
        assert any("version 1 of diffusion stays" in each.getMessage() for each in caplog.records)
        assert not database.exists()
    finally:
        shutil.move(folder / "away", database)
    client.set_registered_model_alias("diffusion", CHAMPION, "2")
    assert seen(following, "2")


@pytest.mark.parametrize("version", ["3", "challenger", "../2"])
def test_a_version_that_is_not_there_is_refused_at_the_start(environment, version):
    with pytest.raises(UserError, match="in this store"):
        Following(environment, "diffusion", version, CPU, OFTEN, print)


def test_versions_are_listed_with_their_aliases_newest_first(environment, client):
    assert aliases_by_version(environment, "diffusion") == {"2": [], "1": [CHAMPION]}
    assert aliases_by_version(environment, "another") == {}
    assert version_now(environment, "diffusion", CHAMPION) == "1"
