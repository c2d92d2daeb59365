"""What a checkout has beside its commit can be applied to another checkout of that commit."""

import subprocess

import pytest

from diffusion_core.lineage.changes import MOST_BYTES, Unrecordable, checkout_changes
from diffusion_core.lineage.provenance import git_state

PACKAGE = "diffusion_core"


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    folder = tmp_path / "checkout"
    (folder / PACKAGE).mkdir(parents=True)
    git(folder, "init")
    (folder / "params.yaml").write_text("seed: 0\n")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "dvc.lock").write_text("stages: {}\n")
    (folder / PACKAGE / "code.py").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "x")
    monkeypatch.chdir(folder)
    return folder


def test_a_clean_checkout_has_no_changes(checkout):
    (checkout / "dvc.lock").write_text("stages: {train: {}}\n")
    (checkout / "notes.txt").write_text("untracked, and not code")
    assert checkout_changes() == ""


@pytest.mark.parametrize("place", [".", PACKAGE])
def test_another_checkout_of_the_commit_becomes_the_same(checkout, tmp_path, monkeypatch, place):
    git(checkout, "config", "diff.mnemonicPrefix", "true")
    git(checkout, "config", "diff.relative", "true")
    git(checkout, "config", "color.ui", "always")
    new = {"code.py": b"1\n2\n", "a name\u00e9.py": b"new\n", "empty.py": b"", "table.bin": bytes(range(256))}
    for name, content in new.items():
        (checkout / PACKAGE / name).write_bytes(content)
    (checkout / "dvc.yaml").unlink()
    monkeypatch.chdir(checkout / place)
    assert git_state().dirty
    changes = checkout_changes()
    other = tmp_path / "other"
    git(tmp_path, "clone", "checkout", "other")
    (tmp_path / "changes.diff").write_text(changes, encoding="utf-8", newline="")
    git(other, "apply", str(tmp_path / "changes.diff"))
    assert {name: (other / PACKAGE / name).read_bytes() for name in new} == new
    assert not (other / "dvc.yaml").exists()


def test_secrets_of_addresses_in_params_are_no_changes(checkout):
    """The run has params.yaml apart, without them."""
    (checkout / "params.yaml").write_text("url: https://h/x.zip?sig=canary\n")
    (checkout / PACKAGE / "code.py").write_text("2\n")
    assert git_state().dirty
    assert "canary" not in checkout_changes()
    assert "+2" in checkout_changes()


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"x" * MOST_BYTES, "more than 1 MiB"), ("\u00e9\n".encode("latin-1"), "not UTF-8")],
)
def test_what_a_text_cannot_hold_is_told(checkout, content, why):
    (checkout / PACKAGE / "code.py").write_bytes(content)
    with pytest.raises(Unrecordable, match=why):
        checkout_changes()


def test_outside_a_checkout_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(Unrecordable, match="git"):
        checkout_changes()
