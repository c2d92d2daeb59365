import pytest

from flows import transcript
from flows.transcript import LONGEST_LINE, Transcript


@pytest.fixture
def told():
    return []


def tell(told, *pieces):
    lines = Transcript(told.append)
    for piece in pieces:
        lines.feed(piece)
    lines.close()
    return lines


def test_lines_come_whole_however_the_bytes_are_cut(told):
    text = "first\nzwei über\r\n\n  third".encode()
    for cut in range(len(text)):
        tell(told, text[:cut], text[cut:])
        assert told == ["first", "zwei über", "third"], cut
        told.clear()


def test_what_is_no_utf8_is_told_all_the_same(told):
    tell(told, b"a\xff\n")
    assert told == ["a\N{REPLACEMENT CHARACTER}"]


def test_a_progress_bar_shows_its_first_frame_and_its_last(told):
    tell(told, *(b"%d%%\r" % percent for percent in range(100)), b"100%\nready\n")
    assert told == ["0%", "100%", "ready"]


def test_a_slow_progress_bar_shows_more(told, monkeypatch):
    monkeypatch.setattr(transcript, "SECONDS_BETWEEN_FRAMES", 0.0)
    tell(told, b"1%\r2%\r3%\r", b"4%\n")
    assert told == ["1%", "2%", "3%", "4%"]


def test_a_long_line_is_clipped(told):
    tell(told, b"x" * 5 * LONGEST_LINE)
    assert told == ["x" * LONGEST_LINE + " ..."]


def test_the_last_error_is_kept(told):
    lines = tell(told, b"error: first\nERROR: failed to reproduce 'train'\nerror: params.yaml is missing: add it\n")
    assert lines.error == "params.yaml is missing: add it"
    assert lines.dvc_error == "failed to reproduce 'train'"
    assert tell(told, b"no error: here\n").error is None
