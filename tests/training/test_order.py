"""Each epoch is a permutation, windows are made of blocks of the dataset, and what a window needs is read before it."""

import math

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


@pytest.mark.parametrize(("count", "window"), [(100_000, 6_400), (99_999, 12_345)])
def test_a_window_is_of_blocks_from_everywhere_in_random_order(count, window):
    first = Order(0, count, window).batch(0, window)
    block = window // BLOCKS
    pieces = (first.sort().values.diff() != 1).sum() + 1
    # Blocks may lie side by side by chance, and the last one is cut.
    assert 0.8 * BLOCKS <= pieces <= BLOCKS + 2
    # From everywhere, with the mean and the deviation of uniform blocks.
    share = first.double() / count
    assert share.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * BLOCKS))
    assert share.std() == pytest.approx(math.sqrt(1 / 12), rel=0.3)
    # Neighbours in time are from different blocks.
    assert (first.diff().abs() < block).double().mean() < 3 / BLOCKS


def test_blocks_are_others_in_each_epoch():
    epochs = seen(Order(0, 1000, 128), 2, size=10)
    pairs = [{frozenset(pair.tolist()) for pair in epoch.reshape(-1, 2)} for epoch in epochs]
    assert len(pairs[0] & pairs[1]) < 30
    # The images that are left over, which come last, are others too.
    order = Order(0, 1001, 128)
    last = [set(epoch[-1001 % 128 :].tolist()) for epoch in seen(order, 2)]
    assert last[0] != last[1]


@pytest.mark.parametrize(("count", "window", "size"), [(1000, 100, 16), (1000, 100, 7), (37, 10, 16), (130, 128, 64)])
@pytest.mark.parametrize("first", [0, 11])
def test_each_image_is_read_before_its_window_begins_and_once(count, window, size, first):
    order, present, asked = Order(5, count, window), set(), []
    for step in range(first, first + 3 * count // size):
        ahead = order.ahead(step, size, is_first=step == first)
        asked.append(len(ahead))
        present |= set(ahead.tolist())
        begin = step * size
        # All of the window that the step begins in.
        for position in range(begin, begin + size):
            assert int(order.batch(position, 1)) in present
    # After the first step, as many are read as are used.
    assert set(asked[1:]) == {size}
    assert asked[0] <= 2 * window + size


def test_what_is_read_is_in_pieces():
    order = Order(0, 100_000, 6_400)
    read = order.ahead(0, 64, is_first=True)
    assert len(read) == 6_464
    assert int((read.diff() != 1).sum()) <= BLOCKS + 2
    # The control: the order of training is in none.
    assert int((order.batch(0, 6_400).diff() != 1).sum()) > 6_000


def test_nothing_is_read_ahead_without_windows():
    for window in (None, 20, 30):
        assert len(Order(0, 20, window).ahead(0, 8, is_first=True)) == 0
