import json
import time

import pytest
import torch

from diffusion_core.training.report import COLUMNS, History, write_rows
from diffusion_core.training.step import StepReport


def report(step, loss=1.0, skipped=False):
    tensors = torch.tensor(float(loss)), torch.tensor(2.0)
    return StepReport(step, step * 8, 8, *tensors, 1e-3, torch.tensor(float(skipped)), time.monotonic())


def test_a_row_is_the_mean_over_its_steps_without_those_that_were_skipped():
    history = History(every_images=32)
    rows = [history.add(report(step, loss, skipped=step == 2), last=False) for step, loss in enumerate([5, 9, 1, 3], 1)]
    assert rows[:3] == [None, None, None]
    assert rows[3]["loss"] == pytest.approx((5 + 1 + 3) / 3)
    assert rows[3]["images"] == 32


def test_the_rate_counts_the_time_of_a_row_and_not_what_was_done_between_two():
    history = History(every_images=16)
    for _ in range(2):
        time.sleep(0.5)
        first = report(1)
        history.add(first, last=False)
        time.sleep(0.1)
        assert history.add(report(2), last=False)["images_per_second"] == pytest.approx(160.0, rel=0.3)


def test_the_rate_of_a_run_that_goes_on_counts_its_own_steps_alone():
    stored = History(every_images=24)
    stored.add(report(1), last=False)
    history = History(every_images=24, state=json.loads(json.dumps(stored.state())))
    history.add(report(2), last=False)
    time.sleep(0.1)
    assert history.add(report(3), last=False)["images_per_second"] == pytest.approx(160.0, rel=0.3)


def test_the_last_step_ends_a_row():
    assert History(every_images=1000).add(report(1), last=True)["loss"] == 1.0


def test_a_history_that_was_stored_goes_on_where_it_was(tmp_path):
    whole, first = History(every_images=24), History(every_images=24)
    for step in range(1, 5):
        whole.add(report(step, float(step)), last=False)
        first.add(report(step, float(step)), last=False)
    second = History(every_images=24, state=json.loads(json.dumps(first.state())))
    for history in (whole, second):
        for step in range(5, 8):
            history.add(report(step, float(step)), last=step == 7)
    write_rows(tmp_path / "whole.csv", COLUMNS, whole.rows)
    write_rows(tmp_path / "second.csv", COLUMNS, second.rows)
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "second.csv").read_text()
    assert [row["images"] for row in whole.rows] == [24, 48, 56]
