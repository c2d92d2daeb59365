import re

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from diffusion_core import GaussianDiffusion, TensorData, Trainer, Unet
from diffusion_core.runtime import compilation
from diffusion_core.runtime.compilation import OPTIONS, compile_network, compiler_problem, forget_compilation
from diffusion_core.runtime.distributed import Ranks
from tests.conftest import Network

COMPILE = nn.Module.compile


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that a stand-in for Inductor was given."""
    seen = []

    def backend(graph, _):
        seen.append(graph)
        return graph

    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: COMPILE(self, backend=backend, dynamic=False))
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


def test_regions_of_one_shape_are_compiled_once(graphs):
    network = Unet(8, dim_mults=(1, 2, 2), channels=1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    eager = network(x, t)
    compile_network(network)
    torch.testing.assert_close(network(x, t), eager, rtol=1e-4, atol=1e-5)
    regions = list(network.regions())
    assert len(regions) == 22
    # Levels: two residual blocks on the way down and two on the way up each share one, as do the two in the middle.
    assert len(graphs) < 0.75 * len(regions)
    first = len(graphs)
    network(x, t)
    assert len(graphs) == first


def test_more_shapes_than_dynamos_own_limit_are_compiled(graphs):
    network = Unet(4, dim_mults=(1, 2, 3, 4, 5, 6), channels=1)
    compile_network(network)
    network(torch.randn(1, 1, 32, 32), torch.tensor([1]))
    assert len(graphs) > 16


def test_a_network_without_regions_is_compiled_whole(graphs):
    network = Network(lambda x, t, _: x.sin() + t)
    compile_network(network)
    network(torch.zeros(1, 2), torch.zeros(1))
    assert len(graphs) == 1


def test_a_compilation_is_forgotten(graphs):
    network = Unet(4, dim_mults=(1,), channels=1)
    compile_network(network)
    forget_compilation(network)
    network(torch.randn(1, 1, 2, 2), torch.tensor([1]))
    assert graphs == []


def test_inductor_is_told_to_leave_out_what_it_gets_wrong(monkeypatch):
    told = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: told.append(options))
    compile_network(Unet(4, dim_mults=(1,), channels=1))
    assert told
    assert all(options["options"] == {"triton.mix_order_reduction": False} for options in told)
    # Its name is still Inductor's: an option that it no longer has would be of no use.
    assert set(OPTIONS) <= set(torch._inductor.list_options())


def test_a_gpu_that_triton_cannot_serve_is_told(monkeypatch):
    cuda = torch.device("cuda")
    assert compiler_problem(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P100")
    monkeypatch.setattr(compilation, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 0))
    assert compiler_problem(cuda) == "Tesla P100 is too old for Triton (compute capability 6.0)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    assert compiler_problem(cuda) is None
    monkeypatch.setattr(compilation, "find_spec", lambda _: None)
    assert compiler_problem(cuda) == "Triton is not installed"


def test_without_a_compiler_training_says_so_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr("diffusion_core.training.ways.compiler_problem", lambda _: "Triton is not installed")
    images = TensorData(torch.zeros(4, 1, 4, 4, dtype=torch.uint8))
    diffusion = GaussianDiffusion(Unet(4, dim_mults=(1,), channels=1), image_size=4)
    trainer = Trainer(diffusion, images, images=8, batch_size=4, precision="float32", compiled=True)
    assert "the network is not compiled (Triton is not installed): training is slower" in caplog.text
    assert len(list(trainer.steps())) == 2


def test_no_process_compiles_where_another_cannot(caplog):
    class WithOthers(Ranks):
        def all_reduce_max(self, value):
            return 1

    images = TensorData(torch.zeros(4, 1, 4, 4, dtype=torch.uint8))
    diffusion = GaussianDiffusion(Unet(4, dim_mults=(1,), channels=1), image_size=4)
    Trainer(diffusion, images, images=8, batch_size=4, precision="float32", compiled=True, ranks=WithOthers())
    assert "the network is not compiled (another process cannot compile it)" in caplog.text
    assert not any(part._compiled_call_impl for part in diffusion.model.modules())


def test_inductor_makes_one_kernel_of_normalisation_modulation_and_silu(tmp_path, monkeypatch):
    """The real compiler, on one block: its gradients are the eager ones."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = Unet(4, dim_mults=(1,), channels=1).final_res_block
    x = torch.randn(2, 8, 4, 4)
    t = torch.randn(2, 16)

    def gradients():
        block.zero_grad()
        output = block(x, t)
        output.square().sum().backward()
        return [output.detach(), *(each.grad.clone() for each in block.parameters())]

    eager = gradients()
    block.compile(dynamic=False, options=OPTIONS)
    compiled, (forward, backward) = run_and_get_code(gradients)
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    def kernels(code):
        return re.findall(r"(cpp_fused\w*)\(", code[code.index("def call(") :])

    # Everything between two convolutions is one kernel: a square root is normalisation's, "split" modulation's.
    first, second = [name for name in kernels(forward) if "sqrt" in name]
    assert all(part in first for part in ("sqrt", "split", "silu"))
    assert all(part in second for part in ("sqrt", "silu"))
    assert [("silu_backward" in name, "sqrt" in name) for name in kernels(backward)][:2] == [(True, True)] * 2
    assert len(kernels(forward)) + len(kernels(backward)) <= 6
