"""Each epoch is a permutation, windows are made of blocks of the dataset, and what a window needs is read before it."""

import math
from itertools import pairwise

import pytest
import torch

from diffusion_core.randomness import generator
from diffusion_core.training.order import BLOCKS, Order


def seen(order, epochs, size=7):
    """The images of some epochs, in order."""
    steps = math.ceil(epochs * order.count / size)
    return torch.cat([order.batch(step, size) for step in range(steps)])[: epochs * order.count].reshape(epochs, -1)


@pytest.mark.parametrize("window", [None, 1, 3, 19, 20, 21, 64, 100, 150, 999, 1000, 5000])
@pytest.mark.parametrize("count", [1, 20, 1000])
def test_every_image_is_seen_once_an_epoch_in_another_order_each_time(count, window):
    epochs = seen(Order(7, count, window), 3)
    assert (epochs.sort(dim=1).values == torch.arange(count)).all()
    assert count == 1 or (epochs[0] != epochs[1]).any()
    assert count == 1 or (seen(Order(8, count, window), 1)[0] != epochs[0]).any()


def test_without_a_window_the_order_is_the_permutation_of_the_generator():
    for window in (None, 20, 21):
        epochs = seen(Order(7, 20, window), 2)
        for epoch in (0, 1):
            assert epochs[epoch].tolist() == torch.randperm(20, generator=generator(7, epoch, "order")).tolist()


def test_a_batch_is_that_of_its_step_whatever_came_before():
    order = Order(3, 1000, 130)
    whole = seen(order, 4, size=16).flatten()
    for step in (200, 3, 61, 62, 0):
        assert order.batch(step, 16).tolist() == whole[step * 16 : step * 16 + 16].tolist()


@pytest.mark.parametrize(("count", "window"), [(1_000_000, 20 * BLOCKS), (999_999, 30_011)])
def test_a_window_is_of_blocks_from_everywhere_in_random_order(count, window):
    first = Order(0, count, window).batch(0, window)
    block = window // BLOCKS
    pieces = (first.sort().values.diff() != 1).sum() + 1
    # Blocks may lie side by side by chance, and the last one is cut.
    assert 0.9 * BLOCKS <= pieces <= window / block + 2
    # From everywhere, with the mean and the deviation of uniform blocks.
    share = first.double() / count
    assert share.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * BLOCKS))
    assert share.std() == pytest.approx(math.sqrt(1 / 12), rel=0.1)
    # Neighbours in time are from different blocks.
    assert (first.diff().abs() < block).double().mean() < 3 / BLOCKS


def windows(order, epoch):
    """The images of each window of an epoch, sorted."""
    starts = range(epoch * order.count, (epoch + 1) * order.count, order.window)
    stops = [min(start + order.window, (epoch + 1) * order.count) for start in starts]
    return [
        sorted(order.batch(position, 1).item() for position in range(start, stop))
        for start, stop in zip(starts, stops, strict=True)
    ]


def test_windows_are_of_other_blocks_in_each_epoch():
    order = Order(0, 3 * BLOCKS + 1, 2 * BLOCKS)
    first, second = windows(order, 0), windows(order, 1)
    pairs = [{(one, other) for one, other in pairwise(each[0]) if other == one + 1} for each in (first, second)]
    # Two windows of two thirds of all images share two thirds of their pairs.
    assert len(pairs[0] & pairs[1]) < 0.8 * len(pairs[0])
    # The images that are left over are others too: they come last.
    assert first[-1] != second[-1]


@pytest.mark.parametrize(("count", "window", "size"), [(100, 10, 16), (100, 10, 7), (37, 10, 16), (130, 128, 64)])
@pytest.mark.parametrize("first", [0, 11])
def test_each_window_is_read_before_it_begins_and_once(count, window, size, first):
    """Over several epochs, which end within a window."""
    order, steps = Order(5, count, window), 4 * count // size
    epoch, place = divmod(first * size, count)
    start, read = epoch * count + place // window * window, []
    for step in range(first, first + steps):
        read += order.ahead(step, size, is_first=step == first).tolist()
        # From the beginning of a window on, and a window further than what is trained on.
        assert len(read) == (step + 1) * size + window - start
    # From the window of the first step on, what is read is each window in turn, and nothing twice.
    for position in range(start, start + len(read) - window):
        epoch, place = divmod(position, count)
        if place % window == 0:
            length = min(window, count - place)
            expected = windows(order, epoch)[place // window]
            assert sorted(read[position - start : position - start + length]) == expected
    # And what is trained on is of the windows.
    for step in range(first, first + steps):
        for position, image in enumerate(order.batch(step, size).tolist(), step * size):
            epoch, place = divmod(position, count)
            assert image in windows(order, epoch)[place // window]


def test_what_is_read_is_in_pieces():
    order = Order(0, 1_000_000, 20 * BLOCKS)
    read = order.ahead(0, 64, is_first=True)
    assert len(read) == 20 * BLOCKS + 64
    assert int((read.diff() != 1).sum()) <= BLOCKS + 4
    # The control: the order of training is in none.
    assert int((order.batch(0, 20 * BLOCKS).diff() != 1).sum()) > 19 * BLOCKS


def test_nothing_is_read_ahead_without_windows():
    for window in (None, 20, 30):
        assert len(Order(0, 20, window).ahead(0, 8, is_first=True)) == 0
