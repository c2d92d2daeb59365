import sys
from importlib.metadata import version

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.versions import lock, packages, prefect_import
from tests.doctor.findings import is_silent, worst

ENVIRONMENT = Environment()


def test_versions_that_fit_each_other_are_well():
    assert is_silent(packages, ENVIRONMENT)


def test_a_version_that_another_package_refuses_is_found(tmp_path, monkeypatch):
    metadata = tmp_path / "fastapi-0.155.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: fastapi\nVersion: 0.155.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = [each.sentence for each in packages(ENVIRONMENT) if each.verdict == "problem"]
    assert any(each.startswith("fastapi 0.155.0 is installed, and diffusion-core ") for each in found)
    assert any("<0.151" in each for each in found)


def test_versions_that_are_not_those_of_the_lock_are_found(folder):
    assert not [*lock(ENVIRONMENT)]
    (folder / "requirements.lock").write_text(f"httpx=={version('httpx')}\nnot-there==1.0 ; sys_platform == 'x'\n")
    assert is_silent(lock, ENVIRONMENT)
    # Other versions for other versions of Python, as `pip-compile` or `uv` writes them.
    (folder / "requirements.lock").write_text(
        f"httpx==0.0.1 ; python_full_version < '3'\nhttpx=={version('httpx')} ; python_full_version >= '3' \\\n"
    )
    assert is_silent(lock, ENVIRONMENT)
    (folder / "requirements.lock").write_text("httpx==0.0.1 ; python_full_version >= '3'\n")
    assert f"httpx {version('httpx')} instead of 0.0.1" in worst(lock, ENVIRONMENT).sentence


def test_a_prefect_that_cannot_be_imported_is_found(tmp_path, monkeypatch):
    assert is_silent(prefect_import, ENVIRONMENT)
    (tmp_path / "fastapi.py").write_text("raise TypeError('Body() got an unexpected keyword argument')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "unexpected keyword argument" in worst(prefect_import, ENVIRONMENT).sentence
