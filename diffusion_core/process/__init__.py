"""The diffusion process: schedules, objectives, weightings and `GaussianDiffusion`, which combines them."""
