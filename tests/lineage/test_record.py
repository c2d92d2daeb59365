import pytest
from pydantic import ValidationError

from diffusion_core.errors import UserError
from diffusion_core.lineage.record import Record


class Note(Record):
    word: str
    number: int | None


def test_what_is_written_is_read(tmp_path):
    for note in (Note(word="é", number=3), Note(word="", number=None)):
        note.write(tmp_path / "note.json")
        assert Note.read(tmp_path / "note.json", "train") == note


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"word": 1, "number": 1}', '{"word": "", "number": 1, "x": 1}'])
def test_what_was_not_written_so_is_told_with_the_stage_that_makes_it(tmp_path, content):
    (tmp_path / "note.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"note\.json is damaged.*dvc repro --force --single-item train"):
        Note.read(tmp_path / "note.json", "train")
    with pytest.raises(UserError, match=r"other\.json is missing.*dvc repro train"):
        Note.read(tmp_path / "other.json", "train")


def test_a_record_does_not_change():
    with pytest.raises(ValidationError):
        Note(word="a", number=1).word = "b"
