"""Trainings of a small network, and compilers for it that do what they are told to results."""

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from diffusion_core import GaussianDiffusion, TensorData, Trainer, Unet


def right(gradients):
    return list(gradients)


def compiler(backward=right, forward=right):
    """A compiler that is right but for what it does to results."""

    def made(change):
        def build(graph, _):
            return make_boxed_func(lambda *inputs: change(graph(*inputs)))

        return build

    return aot_autograd(fw_compiler=made(forward), bw_compiler=made(backward))


def build(
    compiled=True,
    dropout=0.0,
    precision="float32",
    process=GaussianDiffusion,
    network=Unet,
    immiscible=False,
    **options,
):
    torch.manual_seed(1)
    network = network(8, dim_mults=(1,), channels=1, self_condition=True, num_classes=3, dropout=dropout, **options)
    diffusion = process(network, image_size=4, immiscible=immiscible)
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    data = TensorData(images, torch.arange(30) % 3)
    return Trainer(diffusion, data, images=32, batch_size=8, precision=precision, compiled=compiled)


def finished(trainer):
    losses = [float(report.loss) for report in trainer.steps()]
    return losses, [each.detach().clone() for each in trainer.diffusion.parameters()]


def is_compiled(trainer):
    return any(part._compiled_call_impl is not None for part in trainer.diffusion.model.modules())
