"""Progress is shown by time: lines elsewhere than on a terminal, a bar there."""

import io
import sys

import pytest
import torch
from torch import nn

from diffusion_core import progress
from diffusion_core.generation import make_all
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.progress import Progress, duration, percent
from diffusion_core.samplers.ddim import DDIM


class Clock:
    """Stands for the module's `time`."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_comes_after_five_seconds_and_then_every_thirty(clock, capsys):
    shown, at = Progress("train", 25_600, "images"), []
    for second in range(0, 101):
        clock.now = float(second)
        shown.update(64 * second, note="loss 0.5")
        at += [second] * len(found := lines(capsys))
        if second == 5:
            assert found == ["train: 320 of 25,600 images, 64 images/s, 7 min left, loss 0.5"]
    assert at == [5, 35, 65, 95]


def test_the_rate_is_without_what_came_before_the_first_report(clock, capsys):
    shown = Progress("train", 1000, "images")
    clock.now = 100.0
    shown.update(500)
    clock.now = 110.0
    shown.update(600)
    assert lines(capsys) == ["train: 600 of 1,000 images, 10 images/s, 40 s left"]


def test_work_that_ends_earlier_says_so(clock, capsys):
    shown = Progress("train", 1000, "images")
    shown.update(0)
    clock.now = 10.0
    shown.update(100, at_most=7.0)
    assert lines(capsys) == ["train: 100 of 1,000 images, 10 images/s, 7 s left"]


def test_bytes_are_megabytes_and_an_unknown_total_is_left_out(clock, capsys):
    shown = Progress("fetch", None, "B")
    shown.update(0)
    clock.now = 10.0
    shown.update(25e6)
    shown.total = 100e6
    clock.now = 40.0
    shown.update(100e6)
    assert lines(capsys) == ["fetch: 25 MB, 2.5 MB/s", "fetch: 100 of 100 MB, 2.5 MB/s, 0 s left"]


def test_what_is_not_to_be_shown_is_not(clock, capsys):
    shown = Progress("sample", 10, "images", is_shown=False)
    shown.update(0)
    clock.now = 100.0
    assert not shown.is_due
    shown.update(5)
    assert lines(capsys) == []


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Progress("sample", 10, "images") as shown:
        shown.update(0)
        shown.update(10)
    assert "sample: 100%" in terminal.getvalue()
    assert percent(terminal.getvalue().splitlines()[-1]) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: 12,800 of 25,600 images, 1,240 images/s, 10 s left, loss 0.0312", ("train", 50.0)),
        ("fetch: 2.5 of 10 MB, 0.012 MB/s, 3 h 20 min left", ("fetch", 25.0)),
        ("ingest: 3 of 5 images are new", None),
        ("prepare: left out 3 of 5 files, 2 files/s", None),
        ("fetch: 25 MB, 2.5 MB/s", None),
        ("", None),
    ],
)
def test_a_line_is_read_as_it_was_written_and_no_other_is(line, expected):
    assert percent(line) == expected


def test_every_line_that_is_printed_can_be_read(clock, capsys):
    for total in (3e-5, 0.5, 7, 12.5, 123456.7, 1e12):
        shown = Progress("features of faces", total, "images")
        clock.now = 0.0
        shown.update(0)
        clock.now = 86_400.0 * 3
        shown.update(total / 4)
        (line,) = lines(capsys)
        task, done = percent(line)
        assert (task, done) == ("features of faces", pytest.approx(25, rel=0.1)), line


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (720, "12 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")]
)
def test_a_duration_is_in_the_unit_a_person_would_use(seconds, text):
    assert duration(seconds) == text


class SlowNetwork(nn.Module):
    """A network of which each pass takes 10 seconds of the clock."""

    channels, out_dim, self_condition, learned_variance, num_classes = 1, 1, False, False, None

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, time, x_self_cond=None):
        self.clock.now += 10.0
        return x * self.weight


@pytest.mark.parametrize(("knows_times", "shown"), [(True, [0.5, 2, 3.5, 5, 6.5, 8]), (False, [4, 4, 4])])
def test_sampling_shows_progress_within_a_batch_of_minutes(clock, capsys, knows_times, shown):
    diffusion = GaussianDiffusion(SlowNetwork(clock), image_size=8, timesteps=8).eval()
    sampler = DDIM(steps=8)
    times = [t for t, _ in sampler.transitions(diffusion.schedule)]

    def make(randn, classes, indices):
        return diffusion.sample(len(indices), sampler=sampler, randn=randn)

    # The control: of a batch that does not say its timesteps, only the end is known.
    make_all(diffusion, make, 8, seed=0, batch_size=4, task="sample", times=times if knows_times else ())
    found = [percent(line) for line in lines(capsys)]
    assert found == [("sample", pytest.approx(100 * images / 8, abs=1.5)) for images in shown]
