"""A store with two versions of a registered model, whose weights no training has touched."""

import pytest

from diffusion_core.registry.connection import connect
from diffusion_core.registry.versions import CHAMPION
from diffusion_core.stages import publish
from tests.registry import projects

MODEL = "diffusion"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Versions 1 and 2, of which 1 is the champion; return the folder and the environment."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        environment = projects.new_environment(folder).model_copy(update={"precision": "float32"})
        for seed in (0, 1):
            projects.write_project(folder, seed)
            publish.run(environment)
        connect(environment).set_registered_model_alias(MODEL, CHAMPION, "1")
    return folder, environment


@pytest.fixture
def environment(project):
    return project[1]
