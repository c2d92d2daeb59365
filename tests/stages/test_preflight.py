"""What a run reads is checked before a server starts for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core.stages import preflight

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CHECKOUT / "params.yaml", tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    return tmp_path


def spoil(folder):
    text = (folder / "params.yaml").read_text().replace("image_size:", "image_sise:")
    (folder / "params.yaml").write_text(text)


def refused(capsys):
    with pytest.raises(SystemExit) as left:
        preflight.main()
    assert left.value.code == 2
    return capsys.readouterr().err


def test_a_project_that_is_well_passes(folder, capsys):
    preflight.main()
    assert capsys.readouterr() == ("", "")


def test_what_a_run_cannot_use_is_refused(folder, capsys, monkeypatch):
    (folder / ".env").write_text("DIFFUSION_REGISTRED_MODEL=pictures\n")
    assert "did you mean DIFFUSION_REGISTERED_MODEL?" in refused(capsys)
    (folder / ".env").unlink()
    shutil.rmtree(folder / ".git")
    assert refused(capsys) == (
        f"error: {folder} is not in a git repository, which DVC needs: say `git init`, and commit\n"
    )
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = True\n")
    preflight.main()
    spoil(folder)
    assert "unknown key prepare.image_sise: did you mean image_size?" in refused(capsys)
    shutil.rmtree(folder / ".dvc")
    shutil.copy(CHECKOUT / "params.yaml", folder)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "git is not installed" in refused(capsys)


def test_a_misspelled_key_starts_no_server(folder):
    spoil(folder)
    (folder / "flows").symlink_to(CHECKOUT / "flows")
    done = subprocess.run([sys.executable, "-m", "diffusion_core", "run"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: params.yaml: ")
    assert not list(folder.glob(".prefect/*.db"))
