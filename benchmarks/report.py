"""The Markdown table of a comparison, next to its JSON file. Parts that were not measured have no rows."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = {"ours": "this project", "lucidrains": "denoising-diffusion-pytorch", "huggingface": "diffusers"}


def write(content: dict[str, Any], path: Path) -> None:
    """Write both files and print the table."""
    text = table(content)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def table(content: dict[str, Any]) -> str:
    """Return the results of each library, and the ratios of this project to the others."""
    lines = [*_head(content), "", f"| what | {' | '.join(NAMES.values())} | ratios |", "|---|---|---|---|---|"]
    for part, title in (
        ("training", "training"),
        ("self_conditioned", "training, self-conditioned"),
        ("amp", "training, the peer with amp"),
    ):
        for size, result in _networks(content, part, "train_seconds"):
            lines.append(_rate_row(title + size, result["train_seconds"], result["setting"]["batch"]))
    for size, result in _networks(content, "sampling", "sample_seconds"):
        for count, seconds in result["sample_seconds"].items():
            lines.append(_rate_row(f"DDIM-50{size}, batch {count}", seconds, int(count)))
    for size, result in _networks(content, "training", "peak_megabytes"):
        lines.append(_value_row(f"peak memory of training{size}, MB", result["peak_megabytes"]))
    for size, result in _networks(content, "first_step", "first_step_seconds"):
        warm = result.get("warm_first_step_seconds")
        empty = ", empty compile cache" if warm else ""
        lines.append(_value_row(f"time to the first step{size}{empty}, s", result["first_step_seconds"]))
        if warm:
            lines.append(_value_row(f"time to the first step{size}, warm compile cache, s", warm))
    for size, result in _networks(content, "peak", "step_seconds"):
        lines.append(_peak_row(f"training{size}", result))
    return "\n".join([*lines, *_quality_rows(content)]) + "\n"


def _head(content: Mapping[str, Any]) -> list[str]:
    """Return the machines, with their parts if there are several, and the missing libraries."""
    parts: dict[str, list[str]] = {}
    missing: dict[str, str] = {}
    for name, result in content.items():
        machine = result["machine"]
        named = {**machine, "python": f"Python {machine['python']}", "torch": f"PyTorch {machine['torch']}"}
        text = ", ".join(f"{value} {key}" if key == "cores" else str(value) for key, value in named.items())
        parts.setdefault(text, []).append(name)
        missing |= result.get("left_out", {})
    lines = []
    for text, names in parts.items():
        which = f" ({', '.join(names)})" if len(parts) > 1 else ""
        lines.append(f"Measured on {text}{which}.")
    return lines + [f"Left out: {NAMES[peer]} ({reason})." for peer, reason in missing.items()]


def _networks(content: Mapping[str, Any], part: str, figure: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a part's networks that have the result `figure`, each with the size for its title."""
    networks = content.get(part, {}).get("networks", [])
    for result in networks:
        size = result["setting"]["size"]
        if figure in result:
            yield f", {size} x {size}" if len(networks) > 1 else "", result


def _quality_rows(content: Mapping[str, Any]) -> Iterator[str]:
    if "quality" not in content:
        return
    result = content["quality"]
    after = f"after {result['seconds']:.0f} s of training"
    if result["images"] == "digits":
        yield _value_row(f"Fréchet distance {after} (floor {result['floor']:.2f})", result["frechet"])
        return
    floors = {name: value / result["floor"] for name, value in result["frechet"].items()}
    yield _value_row(f"Fréchet distance on {result['images']} {after}, in multiples of the floor", floors)
    yield _value_row(f"mean squared error of the noise on unseen {result['images']} {after}", result["noise_error"])


def _rate_row(what: str, seconds: Mapping[str, Sequence[float]], images: int) -> str:
    """Return a row of images per second."""
    rates = {name: images / statistics.median(values) for name, values in seconds.items()}
    return _row(f"{what}, images/s", rates, {name: _ratio(values, seconds["ours"]) for name, values in seconds.items()})


def _value_row(what: str, values: Mapping[str, float]) -> str:
    """Return a row with one value per library."""
    return _row(what, values, {name: values["ours"] / value for name, value in values.items()})


def _peak_row(what: str, result: Mapping[str, Any]) -> str:
    rate = result["matrix_flop_per_second"]
    step = result["flop_per_image"] * result["setting"]["batch"] / statistics.median(result["step_seconds"])
    reached = f"{step / 1e12:,.3g} ({step / rate:.0%})"
    return f"| {what}, TFLOP/s (share of the {rate / 1e12:,.3g} of a matrix product) | {reached} |  |  |  |"


def _row(what: str, figures: Mapping[str, float], ratios: Mapping[str, float]) -> str:
    shown = [_short(figures[name]) if name in figures else "" for name in NAMES]
    others = [f"{ratios[name]:.2f}x" for name in NAMES if name in ratios and name != "ours"]
    return f"| {what} | {' | '.join(shown)} | {', '.join(others)} |"


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios of consecutive measurements."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
