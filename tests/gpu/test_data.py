"""Images come in the order of `Order`, with their own labels, by whichever way they come to the device."""

import pytest
import torch

from diffusion_core import GaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.training import data as training_data
from diffusion_core.training.order import Order
from tests.gpu.builds import replaying

COUNT, BATCH, STEPS, SIDE, CLASSES = 1000, 32, 70, 8, 7


class OnTheHost:
    """Images that are read anew for each batch, as from a file: image i is i, in the digits of 256."""

    def __len__(self):
        return COUNT

    def batch(self, indices):
        digits = torch.stack((indices % 256, indices // 256, indices % 5), dim=1)
        return digits.byte()[:, :, None, None].expand(-1, -1, SIDE, SIDE).contiguous(), indices % CLASSES


def in_memory():
    return TensorData(*OnTheHost().batch(torch.arange(COUNT)))


def trained_on(data, device, replayed=False):
    """Return the trainer, and which images and labels each of its steps was given."""
    torch.manual_seed(1)
    network = Unet(8, dim_mults=(1,), self_condition=True, num_classes=CLASSES)
    diffusion = GaussianDiffusion(network, image_size=SIDE).to(device)
    trainer = Trainer(diffusion, data, images=STEPS * BATCH, batch_size=BATCH, seed=3, precision="float32")
    if replayed:
        replaying(trainer)
    seen, inputs = [], trainer.gradient.inputs

    def given(images, labels, randomness):
        # Copied by the device in its order of work and looked at in the end, so that nothing waits for it meanwhile.
        result = inputs(images, labels, randomness)
        seen.append((images[:, :, -1, -1].clone(), result[1].clone()))
        return result

    trainer.gradient.inputs = given
    trainer.losses = torch.stack([report.loss for report in trainer.steps()]).cpu()
    assert len(trainer.losses) == STEPS
    pixels, classes = (torch.stack(each).cpu() for each in zip(*seen, strict=True))
    return trainer, pixels[..., 0].long() + 256 * pixels[..., 1].long(), classes


def compare(record, name, found, classes):
    expected = torch.stack([Order(3, COUNT).batch(step, BATCH) for step in range(STEPS)])
    record(f"{name}: images out of order", (found != expected).sum(), 0)
    record(f"{name}: labels of other images", (classes != expected % CLASSES).sum(), 0)
    # The control: the order of the next step is another.
    assert int((found[:-1] != expected[1:]).sum()) > 0.9 * expected[1:].numel()


def test_a_thread_that_reads_ahead_keeps_the_order(device, record, monkeypatch):
    monkeypatch.setattr(training_data, "RESIDENT_SHARE", 0.0)
    trainer, found, classes = trained_on(OnTheHost(), device)
    assert isinstance(trainer.data, OnTheHost)
    compare(record, "read ahead", found, classes)


def test_images_in_the_devices_memory_keep_the_order(device, record):
    trainer, found, classes = trained_on(in_memory(), device)
    assert trainer.data.images.device.type == device.type
    compare(record, "in the device's memory", found, classes)


def test_a_dataset_that_is_read_goes_to_the_devices_memory_whole(device, record):
    trainer, found, classes = trained_on(OnTheHost(), device)
    assert isinstance(trainer.data, TensorData) == (device.type == "cuda")
    compare(record, "read once", found, classes)


@pytest.mark.usefixtures("graphs")
def test_replayed_steps_keep_the_order(device, record, monkeypatch):
    monkeypatch.setattr(training_data, "RESIDENT_SHARE", 0.0)
    trainer, found, classes = trained_on(OnTheHost(), device, replayed=True)
    compare(record, "read ahead, replayed", found, classes)
    # And what was computed is of these images: a step of others has another loss.
    expected = trained_on(in_memory(), device)[0].losses
    record("read ahead, replayed: losses", ((trainer.losses - expected).abs() / expected).max(), 1e-2)
    assert ((expected[:-1] - expected[1:]).abs() / expected[1:]).mean() > 0.05
