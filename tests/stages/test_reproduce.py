"""The folder of a reproduction keeps what an earlier call made, and its training has the threads that there were."""

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.origin import Origin, Trained
from diffusion_core.stages import reproduce

MADE_OF = Origin("diffusion", 2, "c" * 40, "", {}, "", Trained({}, {}))


def fails(folder):
    """A call that an error ends before it trains, after it has made a file."""

    def call():
        with reproduce._owned(folder, MADE_OF):
            (folder / "registered").mkdir(exist_ok=True)
            raise UserError("the store is down")

    with pytest.raises(UserError, match="store is down"):
        call()


def test_an_error_removes_a_new_folder_and_no_result_of_an_earlier_call(tmp_path):
    folder = tmp_path / "out"
    fails(folder)
    assert list(tmp_path.iterdir()) == []
    with reproduce._owned(folder, MADE_OF):
        (folder / "checkout/models").mkdir(parents=True)
    fails(folder)
    assert (folder / "checkout/models").is_dir()


def test_what_a_killed_call_left_is_not_taken_for_files_of_others(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".reproduction.json.tmp-9999999").touch()
    (tmp_path / ".out.trash-9999999").mkdir()
    with reproduce._owned(folder, MADE_OF):
        assert (folder / "reproduction.json").is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    (folder / "reproduction.json").unlink()
    (folder / "mine").touch()
    with pytest.raises(UserError, match="has other files than"), reproduce._owned(folder, MADE_OF):
        pass


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    owned = reproduce._owned(tmp_path / "out", MADE_OF)
    with pytest.raises(UserError, match="is not a folder: name another with --out"), owned:
        pass
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("tag", "variable"),
    [("2", "2"), ("2 4:1 7:2", "2 4:1 7:2"), ("others on another machine", None), ("changed 1,200 times", None)],
)
def test_threads_are_repeated_where_the_variable_takes_them(tmp_path, monkeypatch, capsys, tag, variable):
    monkeypatch.delenv("DIFFUSION_THREADS", raising=False)
    made_of = Origin("diffusion", 2, "c" * 40, "", {}, "", Trained({"threads": tag}, {}))
    assert reproduce._variables(Environment(), tmp_path, made_of).get("DIFFUSION_THREADS") == variable
    assert (f"its threads cannot be repeated ({tag})" in capsys.readouterr().out) == (variable is None)
