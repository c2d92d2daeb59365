"""Tables and formulas give the numbers of denoising-diffusion-pytorch."""

import pytest
import torch

from diffusion_core.process.weightings import P2
from tests.conformance import cases
from tests.conformance.golden import GOLDEN, PROCESSES, assert_equal, key, process

TABLES = sorted(name.removeprefix("linear/") for name in GOLDEN if name.startswith("linear/") and name.count("/") == 1)


def test_every_table_of_the_package_is_compared():
    assert len(TABLES) == 12
    assert {"betas", "alphas_cumprod", "posterior_log_variance_clipped"} <= set(TABLES)


@pytest.mark.parametrize("schedule", cases.SCHEDULES)
@pytest.mark.parametrize("table", TABLES)
def test_tables_are_equal_entry_by_entry(schedule, table):
    expected = GOLDEN[f"{schedule}/{table}"]
    exact = getattr(process("float64", beta_schedule=schedule), table)
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=0.0)
    stored = getattr(process("float32", beta_schedule=schedule), table)
    torch.testing.assert_close(stored, expected.float(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("weighting", cases.WEIGHTINGS)
@pytest.mark.parametrize("objective", cases.OBJECTIVES)
@pytest.mark.parametrize("schedule", cases.SCHEDULES)
def test_loss_weights_are_equal_entry_by_entry(schedule, objective, weighting):
    options = {"beta_schedule": schedule, "objective": objective, **weigh(weighting)}
    expected = GOLDEN[f"{schedule}/{objective}/{weighting}/loss_weight"]
    torch.testing.assert_close(process("float64", **options).loss_weight, expected, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(process("float32", **options).loss_weight, expected.float(), rtol=1e-6, atol=0.0)


def weigh(weighting):
    """The options that choose a weighting."""
    return {
        "plain": {},
        "min_snr": {"min_snr_loss_weight": True, "min_snr_gamma": cases.MIN_SNR_GAMMA},
        "p2": {"weighting": P2(gamma=cases.P2_GAMMA, k=cases.P2_K)},
    }[weighting]


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("schedule", cases.SCHEDULES)
def test_formulas_without_a_network(schedule, dtype):
    diffusion = process(dtype, beta_schedule=schedule)
    x0, t = cases.x0(cases.DTYPES[dtype]), cases.times()
    noise, x_t = (cases.numbers(name, cases.SHAPE, cases.DTYPES[dtype]) for name in ("noise", "x_t"))
    mean, variance, log_variance = diffusion.q_posterior(x0, x_t, t)
    for name, value in {
        "q_sample": diffusion.q_sample(x0, t, noise),
        "predict_start_from_noise": diffusion.predict_start_from_noise(x_t, t, noise),
        "predict_noise_from_start": diffusion.predict_noise_from_start(x_t, t, x0),
        "predict_v": diffusion.predict_v(x0, t, noise),
        "predict_start_from_v": diffusion.predict_start_from_v(x_t, t, noise),
        "q_posterior.mean": mean,
        "q_posterior.variance": variance,
        "q_posterior.log_variance": log_variance,
    }.items():
        assert_equal(value, f"{schedule}/{dtype}/{name}", dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("schedule", "objective", "self_condition"), PROCESSES)
def test_what_the_networks_answer_is_made_into(schedule, objective, self_condition, dtype):
    diffusion = process(dtype, cases.Waves(self_condition), objective=objective, beta_schedule=schedule)
    x_t, t = cases.numbers("x_t", cases.SHAPE, cases.DTYPES[dtype]), cases.times()
    before = cases.x0(cases.DTYPES[dtype]) if self_condition else None
    name = key(schedule, objective, self_condition, dtype)
    for clip, rederive in ((False, False), (True, False), (True, True)):
        prediction = diffusion.model_predictions(x_t, t, before, clip, rederive)
        assert_equal(prediction.pred_noise, f"{name}/model_predictions.{clip}.{rederive}.noise", dtype)
        assert_equal(prediction.pred_x_start, f"{name}/model_predictions.{clip}.{rederive}.x0", dtype)
    for clip in (False, True):
        mean, variance, log_variance, x0 = diffusion.p_mean_variance(x_t, t, before, clip)
        assert_equal(mean, f"{name}/p_mean_variance.{clip}.mean", dtype)
        assert_equal(variance, f"{name}/p_mean_variance.{clip}.variance", dtype)
        assert_equal(log_variance, f"{name}/p_mean_variance.{clip}.log_variance", dtype)
        assert_equal(x0, f"{name}/p_mean_variance.{clip}.x0", dtype)
