"""The table of a comparison, as Markdown beside its JSON."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = {"ours": "this project", "lucidrains": "denoising-diffusion-pytorch", "huggingface": "diffusers"}


def write(content: dict[str, Any], path: Path) -> None:
    """Write both files and print the table."""
    text = table(content)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def table(content: dict[str, Any]) -> str:
    """Return the figures of each library, with this project's as multiples of the other's."""
    machine = ", ".join(f"{value} {name}" if name == "cores" else str(value) for name, value in _told(content))
    lines = [
        f"Measured on {machine}.",
        "",
        f"| what | {' | '.join(NAMES.values())} | ratios |",
        "|---|---|---|---|---|",
    ]
    for part, title in (
        ("training", "training"),
        ("self_conditioned", "training, self-conditioned"),
        ("amp", "training, the peer with amp"),
    ):
        if part in content:
            result = content[part]
            batch = result["setting"]["batch"]
            lines.append(_row(f"{title}, images/s", result["train_seconds"], lambda s, b=batch: b / s))
    for count, seconds in content["sampling"].items():
        lines.append(_row(f"DDIM-50, batch {count}, images/s", seconds, lambda s, c=int(count): c / s))
    training = content["training"]
    lines.append(_row("peak memory of training, MB", _single(training["peak_megabytes"]), lambda m: m, inverted=False))
    lines.append(
        _row("time to the first step, s", _single(training["first_step_seconds"]), lambda s: s, inverted=False)
    )
    quality = content["quality"]
    distances = {name: [quality[name]["frechet"]] for name in NAMES}
    what = f"Fréchet distance after {quality['seconds']:.0f} s of training (floor {quality['floor']:.2f})"
    lines.append(_row(what, distances, lambda d: d, inverted=False))
    return "\n".join(lines) + "\n"


def _told(content: dict[str, Any]) -> list[tuple[str, Any]]:
    machine = {**content["machine"], "torch": "PyTorch " + content["training"]["torch"]}
    return [*(machine | {"python": f"Python {machine['python']}"}).items()]


def _single(values: dict[str, float]) -> dict[str, list[float]]:
    return {name: [value] for name, value in values.items()}


def _row(what: str, values: dict[str, list[float]], shown: Any, inverted: bool = True) -> str:
    """One line; `inverted` where the values are seconds and the figure is a rate."""
    figures = [_short(shown(statistics.median(values[name]))) if name in values else "" for name in NAMES]
    others = [name for name in NAMES if name in values and name != "ours"]
    ratios = [
        f"{_ratio(values[name], values['ours']) if inverted else _ratio(values['ours'], values[name]):.2f}x"
        for name in others
    ]
    return f"| {what} | {' | '.join(figures)} | {', '.join(ratios)} |"


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios of neighbours in time."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
