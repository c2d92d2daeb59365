"""Runs the stage `train`, and prints the seconds of its parts as JSON."""

import json
import time
from collections.abc import Callable
from typing import Any

BEGAN = time.perf_counter()

from diffusion_core.config.environment import load_environment  # noqa: E402
from diffusion_core.config.params import load_settings  # noqa: E402
from diffusion_core.registry.tracking import Run  # noqa: E402
from diffusion_core.stages import train  # noqa: E402
from diffusion_core.training.saving import Saver  # noqa: E402
from diffusion_core.training.trainer import Trainer  # noqa: E402

seconds: dict[str, float] = {"imports": time.perf_counter() - BEGAN}


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its time added to `seconds[name]`."""

    def run(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    return run


def main() -> None:
    """Run the stage and print the seconds."""
    Saver.save = timed("checkpoints", Saver.save)  # type: ignore[method-assign]
    Saver.wait = timed("waiting for checkpoints", Saver.wait)  # type: ignore[method-assign]
    train.preview = timed("previews", train.preview)  # type: ignore[attr-defined]
    Run.metrics = timed("MLflow", Run.metrics)  # type: ignore[method-assign]
    Run.image = timed("MLflow", Run.image)  # type: ignore[method-assign]
    train._steps = timed("training, with all of these", train._steps)
    steps: list[float] = []
    step = Trainer._train_step

    def first_told(*arguments: Any) -> Any:
        began = time.perf_counter()
        report = step(*arguments)
        steps.append(time.perf_counter() - began)
        return report

    Trainer._train_step = first_told  # type: ignore[assignment,method-assign]
    began = time.perf_counter()
    train.run(load_settings().train, load_environment())
    seconds["stage"] = time.perf_counter() - began
    seconds["first step"], seconds["steps"] = steps[0], sum(steps)
    print(json.dumps({name: round(value, 3) for name, value in seconds.items()}))


if __name__ == "__main__":
    main()
