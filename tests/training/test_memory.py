"""A device whose memory is too small: here a network that refuses more than so many images at a time."""

import pytest
import torch

from diffusion_core import GaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.training.order import Order
from diffusion_core.training.step import OutOfMemory
from tests.gpu.builds import Small


def build(room, **options):
    torch.manual_seed(1)
    network = Small(8, dim_mults=(1, 2), channels=1, self_condition=True, num_classes=3)
    network.room = room
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    data = TensorData(images, torch.arange(30) % 3)
    options = {"images": 64, "batch_size": 16, "precision": "float32", **options}
    return Trainer(GaussianDiffusion(network, image_size=4), data, **options)


def first_step(trainer):
    batch = trainer.data.batch(Order(0, 30).batch(0, 16)[: 16 // trainer.ranks.count])
    loss = trainer.gradient.attempt(trainer.gradient.compute, *batch, trainer._randomness())
    return loss, torch.cat([each.grad.flatten() for each in trainer.diffusion.parameters()])


@pytest.mark.parametrize(("room", "parts"), [(16, 1), (8, 2), (5, 4), (1, 16)])
def test_a_batch_that_does_not_fit_is_cut_and_gives_the_same_gradient(room, parts, caplog):
    loss, gradient = first_step(build(10**6))
    trainer = build(room)
    its_loss, its_gradient = first_step(trainer)
    assert trainer.gradient.accumulate == parts
    assert not trainer.diffusion.model.recompute
    assert ("did not fit" in caplog.text) == (parts > 1)
    torch.testing.assert_close(its_loss, loss, rtol=1e-6, atol=0)
    assert float((its_gradient - gradient).abs().max()) <= 1e-6 * max(1.0, float(gradient.abs().max()))
    assert len(list(trainer.steps())) == 4


def test_activations_are_computed_again_where_a_single_image_does_not_fit():
    loss, gradient = first_step(build(10**6))
    trainer = build(0.5)
    its_loss, its_gradient = first_step(trainer)
    assert trainer.diffusion.model.recompute
    torch.testing.assert_close(its_loss, loss, rtol=1e-6, atol=0)
    assert float((its_gradient - gradient).abs().max()) <= 1e-6 * max(1.0, float(gradient.abs().max()))


def test_computing_again_keeps_fewer_activations():
    def kept(recompute):
        network = Unet(8, dim_mults=(1, 2), channels=1)
        network.recompute = recompute
        sizes = []
        hooks = (lambda each: sizes.append(each.numel()) or each, lambda each: each)
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            network(torch.randn(64, 1, 8, 8), torch.arange(64))
        return sum(sizes)

    assert kept(True) < 0.6 * kept(False)


def test_memory_for_not_even_one_image_is_told():
    with pytest.raises(OutOfMemory, match=r"too small for 1 images at a time \(tried to hold 1 images\): take smaller"):
        list(build(0).steps())


def test_of_several_processes_none_goes_its_own_way(monkeypatch):
    monkeypatch.setattr(Ranks, "ddp", lambda self, module: module)
    trainer = build(4, ranks=Ranks(0, 2))
    with pytest.raises(OutOfMemory, match="raise train.accumulate"):
        first_step(trainer)


def test_what_runs_in_smaller_parts_than_were_checked_is_checked_again(monkeypatch):
    trainer = build(16)
    checked = []
    monkeypatch.setattr(trainer.ways, "check", lambda *_: checked.append(trainer.gradient.accumulate))
    trainer.ways.compiled = True
    steps = trainer.steps()
    next(steps)
    assert checked == []
    trainer.diffusion.model.room = 8
    next(steps)
    assert checked == []
    next(steps)
    assert checked == [2]
