import threading
import time

import pytest
import torch

from diffusion_core import TensorData
from diffusion_core.training.loading import ahead, batches, resident


def data():
    return TensorData(torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1), torch.arange(20))


def test_batches_are_those_of_their_steps():
    found = batches(data(), lambda step: torch.tensor([step, step + 1]), range(3, 6), torch.device("cpu"))
    assert [(images.flatten().tolist(), labels.tolist()) for images, labels in found] == [
        ([step, step + 1], [step, step + 1]) for step in (3, 4, 5)
    ]


def test_the_next_item_is_made_while_this_one_is_used():
    made = []

    def items():
        for number in range(3):
            made.append((number, threading.current_thread().name))
            yield number

    walk = ahead(items())
    assert next(walk) == 0
    deadline = time.monotonic() + 10
    while len(made) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [*walk] == [1, 2]
    assert all(name.startswith("ahead") for _, name in made)


def test_an_item_that_cannot_be_made_is_an_error_of_who_asked_for_it():
    def items():
        yield 1
        raise OSError("the disk is gone")

    walk = ahead(items())
    assert next(walk) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(walk)


def test_whoever_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    walk = ahead(iter(range(100)))
    next(walk)
    walk.close()
    assert threading.active_count() == before


def test_on_a_cpu_a_dataset_stays_where_it_is():
    images = data()
    assert resident(images, torch.device("cpu")) is images
