"""What may leave a CUDA device in disorder, each in a process of its own: `python -m tests.gpu.child SCENE`.

The last line of the output is JSON: what was measured.
"""

import gc
import json
import sys

import torch

from diffusion_core import Trainer, Unet
from tests.gpu.builds import Geometry, build, pictures, replaying

STEPS = 6
LARGE = Geometry(32, (1, 2), 32, 256)
SMALL = Geometry(16, (1, 2), 16, 32)


class Asks(Unet):
    """A network that lets the host look at a value, which no graph can hold."""

    def forward(self, *inputs):
        output = super().forward(*inputs)
        assert float(output.detach().abs().sum()) >= 0.0
        return output


def trainer(shape, **options):
    data = pictures(512, shape.side)
    diffusion = build("all", "cuda", shape, **options)
    return Trainer(diffusion, data, images=STEPS * shape.batch, batch_size=shape.batch, precision="float32")


def losses(trained):
    return [float(report.loss) for report in trained.steps()]


def peak(shape):
    """Return the losses of a training, and what it needs beyond what the process has anyway."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    found = losses(trainer(shape))
    needed = torch.cuda.max_memory_reserved() - before
    gc.collect()
    torch.cuda.empty_cache()
    return found, needed


def out_of_memory(replayed):
    """Train in 40% of the memory that a training needs; with graphs, which have memory of their own, likewise."""
    expected, needed = peak(LARGE)
    trained = replaying(trainer(LARGE)) if replayed else trainer(LARGE)
    allowed = torch.cuda.memory_reserved() + 0.4 * needed
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    found = losses(trained)
    recordings = [] if not replayed else [*trained._run._recordings.values()]
    return {
        "loss": share(found, expected),
        "parts": trained.gradient.accumulate,
        "needed": needed,
        "recordings": sum(each is not None for each in recordings),
    }


def unrecordable():
    """Train a network that cannot be recorded, with what the self-check and the trainer do about it."""
    # Dropout takes its masks of the generator that the refused recording had taken over.
    expected = losses(trainer(SMALL, network=Asks, dropout=0.2))
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    trained = replaying(trainer(SMALL, network=Asks, dropout=0.2))
    trained.ways.unchecked = True
    stream = torch.cuda.current_stream()
    found = losses(trained)
    problem = ""
    try:
        # Which a training does when memory is short.
        torch.cuda.empty_cache()
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    verdict = trained.verdicts[-1]
    del trained
    gc.collect()
    torch.cuda.empty_cache()
    return {
        "kept": torch.cuda.memory_reserved() - before,
        "loss": share(found, expected),
        "verdict": str(verdict),
        "refused": bool(verdict.problem),
        "stream": torch.cuda.current_stream() == stream,
        "problem": problem,
    }


def share(ours, theirs):
    assert len(ours) == len(theirs) == STEPS
    return max(abs(one / other - 1.0) for one, other in zip(ours, theirs, strict=True))


def main():
    # Float32 means float32, not TF32.
    torch.backends.cudnn.allow_tf32 = False
    scenes = {
        "out_of_memory": lambda: out_of_memory(replayed=False),
        "out_of_memory_replayed": lambda: out_of_memory(replayed=True),
        "unrecordable": unrecordable,
    }
    print(json.dumps(scenes[sys.argv[1]]()))


if __name__ == "__main__":
    main()
