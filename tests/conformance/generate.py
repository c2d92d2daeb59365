"""Write golden.npz, unets.npz and oracle.json from the installed package denoising-diffusion-pytorch.

Once, in a virtual environment of its own, because the package brings torchvision and much else:

    python -m venv oracle
    oracle/bin/pip install torch torchvision denoising-diffusion-pytorch==2.3.4
    oracle/bin/pip install --no-deps --target older denoising-diffusion-pytorch==1.4.6
    oracle/bin/python -m tests.conformance.generate older

Version 1.4.6, the last with the p2 weighting and the l1 loss, is asked for these two alone. The package draws its own
noise, so its calls of torch.randn and torch.randn_like are answered with the numbers of cases.py. It keeps its tables
in float32; where float64 is asked for, it is told that float32 is float64 while it makes them.
"""

import inspect
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from tests.conformance import cases
from tests.conformance.oracle import load, noises, process

FOLDER = Path(__file__).parent
METHODS = [
    *("q_sample", "q_posterior", "predict_start_from_noise", "predict_noise_from_start", "predict_v"),
    *("predict_start_from_v", "model_predictions", "p_mean_variance", "p_sample", "p_sample_loop", "ddim_sample"),
    *("sample", "interpolate", "noise_assignment", "random_times", "p_losses", "forward"),
]


def each_image(diffusion, dtype, **options):
    """Return the loss of each image, (B,); versions before loss_reduction had only the mean."""
    x0, noise, t = cases.x0(dtype), cases.numbers("noise", cases.SHAPE, dtype), cases.times()
    losses = [
        diffusion.p_losses(x0[i : i + 1], t[i : i + 1], noise=noise[i : i + 1].clone(), **options)
        for i in range(len(x0))
    ]
    return torch.stack(losses)


def kept(walk):
    """Return the steps of a walk, (B, S + 1, C, H, W), that are compared."""
    return torch.cat((walk[:, :: cases.KEPT], walk[:, -1:]), dim=1)


def single_steps(diffusion, dtype):
    """Yield the process's formulas at given inputs."""
    x0, t = cases.x0(dtype), cases.times()
    noise, x_t = (cases.numbers(name, cases.SHAPE, dtype) for name in ("noise", "x_t"))
    yield "q_sample", diffusion.q_sample(x0, t, noise)
    yield "predict_start_from_noise", diffusion.predict_start_from_noise(x_t, t, noise)
    yield "predict_noise_from_start", diffusion.predict_noise_from_start(x_t, t, x0)
    yield "predict_v", diffusion.predict_v(x0, t, noise)
    yield "predict_start_from_v", diffusion.predict_start_from_v(x_t, t, noise)
    for name, value in zip(("mean", "variance", "log_variance"), diffusion.q_posterior(x0, x_t, t), strict=True):
        yield f"q_posterior.{name}", value


def network_steps(diffusion, dtype):
    """Yield what the network's answer is made into."""
    x_t, t = cases.numbers("x_t", cases.SHAPE, dtype), cases.times()
    before = cases.x0(dtype) if diffusion.self_condition else None
    for clip, rederive in ((False, False), (True, False), (True, True)):
        prediction = diffusion.model_predictions(x_t, t, before, clip, rederive)
        yield f"model_predictions.{clip}.{rederive}.noise", prediction.pred_noise
        yield f"model_predictions.{clip}.{rederive}.x0", prediction.pred_x_start
    for clip in (False, True):
        names = ("mean", "variance", "log_variance", "x0")
        for name, value in zip(names, diffusion.p_mean_variance(x_t, t, before, clip), strict=True):
            yield f"p_mean_variance.{clip}.{name}", value


def walks(make, dtype):
    """Yield whole walks; `make` builds the process with more options."""
    shape = cases.WALK_SHAPE
    with noises("ddpm", shape, dtype):
        yield "ddpm", kept(make().p_sample_loop(shape, return_all_timesteps=True))
    for steps in cases.DDIM_STEPS:
        for eta in cases.DDIM_ETAS:
            diffusion = make(sampling_timesteps=steps, ddim_sampling_eta=eta)
            with noises("ddim", shape, dtype):
                yield f"ddim.{steps}.{eta}", kept(diffusion.ddim_sample(shape, return_all_timesteps=True))
    x1, x2 = (cases.numbers(name, shape, dtype).clamp(-1, 1) for name in ("x1", "x2"))
    with noises("interpolate", shape, dtype):
        yield "interpolate", make().interpolate(x1, x2, t=20, lam=0.3)


def losses(module, kind, objective, self_condition, dtype, **options):
    """Yield the loss of each image, with a guess before and without one."""
    diffusion = process(kind, cases.Waves(self_condition), dtype, objective=objective, **options)
    for name, coin in (("guided", 0.0), ("alone", 1.0)) if self_condition else (("alone", 1.0),):
        with mock.patch.object(module, "random", lambda coin=coin: coin):
            yield name, each_image(diffusion, dtype)


def golden(older):
    """Return every array by its name; `older` is the folder of version 1.4.6."""
    arrays = {}
    module, learned = load()
    kind = module.GaussianDiffusion
    for schedule in cases.SCHEDULES:
        for dtype_name, dtype in cases.DTYPES.items():
            tables = process(kind, cases.Waves(), dtype, beta_schedule=schedule)
            if dtype is torch.float64:
                for name, table in tables.named_buffers():
                    if name != "loss_weight":
                        arrays[f"{schedule}/{name}"] = table
            for name, value in single_steps(tables, dtype):
                arrays[f"{schedule}/{dtype_name}/{name}"] = value
            for objective in cases.OBJECTIVES:
                for self_condition in (False, True):
                    key = f"{schedule}/{objective}/{'self' if self_condition else 'plain'}/{dtype_name}"

                    def make(timesteps=cases.FEW_TIMESTEPS, **options):
                        return process(
                            kind, cases.Waves(self_condition), dtype, timesteps=timesteps, objective=objective,  # noqa: B023
                            beta_schedule=schedule, **options,  # noqa: B023
                        )  # fmt: skip

                    for name, value in network_steps(make(cases.TIMESTEPS), dtype):
                        arrays[f"{key}/{name}"] = value
                    for name, value in walks(make, dtype):
                        arrays[f"{key}/{name}"] = value
                    for weighting in ("plain", "min_snr"):
                        options = {"beta_schedule": schedule, "min_snr_loss_weight": weighting == "min_snr"}
                        options |= {"min_snr_gamma": cases.MIN_SNR_GAMMA}
                        for name, value in losses(module, kind, objective, self_condition, dtype, **options):
                            arrays[f"{key}/{weighting}/{name}"] = value
    for objective in cases.OBJECTIVES:
        for schedule in cases.SCHEDULES:
            for weighting in ("plain", "min_snr"):
                diffusion = process(
                    kind, cases.Waves(), torch.float64, objective=objective, beta_schedule=schedule,
                    min_snr_loss_weight=weighting == "min_snr", min_snr_gamma=cases.MIN_SNR_GAMMA,
                )  # fmt: skip
                arrays[f"{schedule}/{objective}/{weighting}/loss_weight"] = diffusion.loss_weight
    for dtype_name, dtype in cases.DTYPES.items():
        diffusion = process(kind, cases.Waves(), dtype, offset_noise_strength=cases.OFFSET_STRENGTH)
        x0, noise = cases.x0(dtype), cases.numbers("noise", cases.SHAPE, dtype)
        arrays[f"assignment/{dtype_name}"] = diffusion.noise_assignment(x0, noise)
        with noises("offset", cases.SHAPE[:2], dtype):
            arrays[f"offset/{dtype_name}"] = diffusion.p_losses(
                x0, cases.times(), noise=noise.clone(), loss_reduction="none"
            )
        diffusion = process(
            learned.LearnedGaussianDiffusion, cases.Waves(outputs=2), dtype, objective="pred_noise", timesteps=1000
        )
        arrays[f"learned/{dtype_name}/loss"] = each_image(diffusion, dtype)
        x_t, t = cases.numbers("x_t", cases.SHAPE, dtype), cases.times()
        for name, value in zip(
            ("mean", "variance", "log_variance", "x0"),
            diffusion.p_mean_variance(x=x_t, t=t, clip_denoised=True),
            strict=True,
        ):
            arrays[f"learned/{dtype_name}/{name}"] = value

    module, _ = load(older)
    kind = module.GaussianDiffusion
    for objective in cases.OBJECTIVES:
        for schedule in cases.SCHEDULES:
            options = {
                "beta_schedule": schedule,
                "p2_loss_weight_gamma": cases.P2_GAMMA,
                "p2_loss_weight_k": cases.P2_K,
            }
            for self_condition in (False, True):
                for dtype_name, dtype in cases.DTYPES.items():
                    key = f"{schedule}/{objective}/{'self' if self_condition else 'plain'}/{dtype_name}"
                    for loss, weighting in (("l2", "p2"), ("l1", "l1")):
                        for name, value in losses(
                            module, kind, objective, self_condition, dtype, loss_type=loss, **options
                        ):
                            arrays[f"{key}/{weighting}/{name}"] = value
            diffusion = process(kind, cases.Waves(), torch.float64, objective=objective, **options)
            arrays[f"{schedule}/{objective}/p2/loss_weight"] = diffusion.p2_loss_weight
    return {name: value.detach().numpy() for name, value in arrays.items()}


def unets():
    """Return outputs by network, and the names and shapes of their weights."""
    module, _ = load()
    outputs, shapes = {}, {}
    for options in cases.UNETS:
        name = cases.unet_name(options)
        network = module.Unet(**options).eval()
        shapes[name] = {key: list(value.shape) for key, value in network.state_dict().items()}
        for which in ("model", "ema"):
            network.load_state_dict(cases.weights(shapes[name], which))
            with torch.no_grad():
                outputs[f"{name}/{which}"] = network(*cases.unet_input(options)).numpy()
    return outputs, shapes


def trainer_names():
    """Return the names in a checkpoint of the package's trainer, by part, for a small network."""
    module, _ = load()
    diffusion = module.GaussianDiffusion(module.Unet(8, dim_mults=(1, 2)), image_size=8)
    average = module.EMA(diffusion, beta=0.995, update_every=10)
    outside = {name for name in average.state_dict() if not name.startswith(("ema_model.", "online_model."))}
    return {
        "ema": sorted(outside),
        "online": any(name.startswith("online_model.") for name in average.state_dict()),
        "tables": [name for name in diffusion.state_dict() if not name.startswith("model.")],
    }


def signatures():
    """Return the parameters of the process's methods: name, default and kind."""
    module, _ = load()

    def parameters(function):
        return [
            [each.name, None if each.default is each.empty else repr(each.default), each.kind.name]
            for each in inspect.signature(function).parameters.values()
        ]

    kinds = {"GaussianDiffusion": module.GaussianDiffusion, "Unet": module.Unet}
    return {name: parameters(getattr(module.GaussianDiffusion, name)) for name in METHODS} | {
        name: parameters(kind.__init__) for name, kind in kinds.items()
    }


def main():
    """Write the three files."""
    np.savez_compressed(FOLDER / "golden.npz", **golden(sys.argv[1]))
    outputs, shapes = unets()
    np.savez_compressed(FOLDER / "unets.npz", **outputs)
    module, _ = load()
    content = {
        "package": module.__version__,
        "torch": torch.__version__,
        "signatures": signatures(),
        "unets": shapes,
        "trainer": trainer_names(),
    }
    (FOLDER / "oracle.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
