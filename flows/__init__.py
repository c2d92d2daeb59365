"""The scheduled pipeline."""

# It sets variables that Prefect reads at import time; no module of this package imports Prefect before.
import diffusion_core.supervision  # noqa: F401
