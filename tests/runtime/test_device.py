from contextlib import contextmanager

import pytest
import torch

from diffusion_core.errors import UserError
from diffusion_core.runtime import device, precision
from diffusion_core.runtime.distributed import Ranks


@pytest.fixture
def _two_cores(monkeypatch):
    monkeypatch.setattr(device, "cores", lambda: 2)


@pytest.fixture
def _two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("_two_gpus")
def test_each_process_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device.choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes were started, and this machine has 2 CUDA GPUs"):
        device.choose_device("auto")


@pytest.mark.parametrize(
    ("cuda", "why"), [(None, "this PyTorch is built without CUDA"), ("13.0", "PyTorch finds none")]
)
def test_why_there_is_no_gpu(cuda, why, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert device.why_no_cuda().startswith(why)


@pytest.mark.usefixtures("_two_gpus")
def test_auto_is_a_process_a_gpu():
    cuda = torch.device("cuda")
    assert device.choose_processes("auto", cuda) == 2
    assert device.choose_processes(1, cuda) == 1
    with pytest.raises(UserError, match="DIFFUSION_PROCESSES is 3, and this machine has 2 CUDA GPUs"):
        device.choose_processes(3, cuda)


@pytest.mark.usefixtures("_two_cores")
def test_on_a_cpu_there_are_as_many_processes_as_cores_at_most():
    cpu = torch.device("cpu")
    assert device.choose_processes("auto", cpu) == 1
    assert device.choose_processes(2, cpu) == 2
    with pytest.raises(UserError, match="DIFFUSION_PROCESSES is 3, and this machine has 2 processor cores"):
        device.choose_processes(3, cpu)


def test_a_network_is_compiled_on_request_and_by_itself_on_cuda_alone(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    chosen = {
        (wanted, each.type): device.choose_compiled(wanted, each)
        for wanted in ("auto", "on", "off")
        for each in (cpu, cuda)
    }
    assert [key for key, compiled in chosen.items() if compiled] == [("auto", "cuda"), ("on", "cpu"), ("on", "cuda")]


def test_threads_are_chosen_on_a_cpu_for_one_process_alone(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    cpu = torch.device("cpu")
    assert device.choose_threads("auto", cpu, Ranks()).candidates == (4, 2, 1)
    assert device.choose_threads(3, cpu, Ranks()).candidates == (3,)
    assert device.choose_threads("auto", cpu, Ranks(0, 2)) is None
    assert device.choose_threads("auto", torch.device("cuda"), Ranks()) is None


def test_a_precision_that_the_device_lacks_is_refused_by_its_variable(monkeypatch):
    monkeypatch.setattr(precision, "_bfloat16_hardware", lambda _: None)
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"DIFFUSION_PRECISION: precision is bfloat16.*set it to auto or float32"):
        device.choose_dtype("bfloat16", cpu)
    chosen = device.choose_dtype("auto", cpu)
    assert chosen.dtype == torch.float32
    assert str(chosen) == "float32, because this cpu device has no hardware for bfloat16"


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match="precision is 'half'; it must be auto, float32 or bfloat16"):
        precision.choose_precision("half", torch.device("cpu"))


def test_each_gpu_is_asked_for_its_own_precision(monkeypatch):
    """PyTorch's question is about the current device: here, GPU 1 alone has bfloat16."""
    current = [0]

    @contextmanager
    def on(chosen):
        before, current[0] = current[0], chosen.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: current[0] == 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: f"GPU {current[0]}")
    assert precision.choose_precision("auto", torch.device("cuda", 0)).dtype == torch.float32
    assert "GPU 1" in precision.choose_precision("auto", torch.device("cuda", 1)).reason
