"""The diffusion process: schedules, objectives, weightings and `GaussianDiffusion` that joins them."""
