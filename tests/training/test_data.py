import threading
import time
from dataclasses import dataclass

import pytest
import torch

from diffusion_core import TensorData
from diffusion_core.runtime.device import to_device
from diffusion_core.training.data import batches, prefetch, resident


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

    walk = prefetch(items())
    assert next(walk) == 0
    deadline = time.monotonic() + 10
    while len(made) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [*walk] == [1, 2]
    assert all(name.startswith("prefetch") for _, name in made)


def test_an_item_that_cannot_be_made_is_an_error_of_who_asked_for_it():
    def items():
        yield 1
        raise OSError("the disk is gone")

    walk = prefetch(items())
    assert next(walk) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(walk)


def test_whoever_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    walk = prefetch(iter(range(100)))
    next(walk)
    walk.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("lies", ["on the host", "on the device"])
def test_only_images_on_the_host_are_read_by_a_thread(lies, monkeypatch):
    """On a device whose images are picked there, a second thread would run operations beside those of a step."""
    device = torch.device("meta") if lies == "on the host" else torch.device("cpu")
    names = set()

    @dataclass(frozen=True)
    class Data(TensorData):
        def batch(self, indices):
            names.add(threading.current_thread().name)
            return super().batch(indices)

    found = batches(Data(data().images, data().labels), lambda step: torch.tensor([step]), range(3), device)
    assert {images.device for images, _ in found} == {device}
    assert all(name.startswith("prefetch") for name in names) == (lies == "on the host")


def test_copies_to_a_gpu_are_asynchronous_from_pinned_memory_alone(monkeypatch):
    pinned, copies = torch.ones(1), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _: pinned)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **options: copies.append((self, device, options)))
    cuda, host = torch.device("cuda"), torch.zeros(1)
    to_device(host, cuda)
    to_device(host, torch.device("mps"))
    to_device(host, torch.device("cpu"))
    assert [(source is pinned, device.type, options) for source, device, options in copies] == [
        (True, "cuda", {"non_blocking": True}),
        (False, "mps", {}),
        (False, "cpu", {}),
    ]


def test_on_a_cpu_a_dataset_stays_where_it_is():
    images = data()
    assert resident(images, torch.device("cpu")) is images
