"""The types of params.yaml, which has one section per stage with everything that changes results.

The whole file is checked before any stage starts, so that an error in the last section is reported before training.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from diffusion_core.config.section import BY_KIND, Section, Seed, Share
from diffusion_core.config.train import TrainSettings
from diffusion_core.data.crops import CropChoice, Middle
from diffusion_core.data.decoding import ColorProfile, Decoding, SampleRange
from diffusion_core.data.labels import FirstFolder
from diffusion_core.data.sources import SourceChoice
from diffusion_core.metrics.estimate import SUFFIXES
from diffusion_core.metrics.extractors import ExtractorChoice
from diffusion_core.metrics.features import SMALLEST_IMAGE
from diffusion_core.metrics.figures import MetricChoice, every_metric
from diffusion_core.metrics.figures.frechet import Fid
from diffusion_core.metrics.figures.metric import COUNTS, prefixed
from diffusion_core.problems import hint
from diffusion_core.samplers import SamplerChoice
from diffusion_core.samplers.guidance import Guidance

__all__ = [
    "Comparison",
    "DataLimits",
    "EvaluateSettings",
    "IngestSettings",
    "Limit",
    "PrepareSettings",
    "PromoteSettings",
    "ReferenceSettings",
    "SampleSettings",
    "Settings",
    "TrainSettings",
]


class IngestSettings(Section):
    """The source of the images."""

    source: Annotated[SourceChoice, BY_KIND]


class DataLimits(Section):
    """What the images must keep, or `prepare` stops and leaves the earlier version; null for no limit."""

    min_images: PositiveInt | None = Field(default=None, description="in the dataset")
    max_quarantined_share: Share | None = Field(default=None, description="of the files")
    min_images_per_class: PositiveInt | None = Field(default=None, description="where there are classes")
    max_duplicates_share: Share | None = Field(
        default=None, description="near-duplicates of others, of all that decode"
    )
    max_drift: NonNegativeFloat | None = Field(
        default=None, description="of any measure: the population stability index"
    )


class PrepareSettings(Section):
    """Size and colours of the prepared images, how files are read, and the share of the validation split."""

    image_size: int | tuple[int, int] = Field(description="of a square, or height and width")
    color: Literal["grayscale", "rgb", "rgba"]
    crop: Annotated[CropChoice, BY_KIND] = Middle()
    min_size: PositiveInt = Field(1, description="in pixels, of the shorter side of an image that is used")
    max_aspect: float | None = Field(None, ge=1.0, description="of an image that is used: longer by shorter side")
    linear_light: bool = Field(False, description="resize in intensities, as light adds up, and not in sRGB's values")
    color_profile: ColorProfile = Field("convert", description="of a file: convert colours to sRGB by it, or ignore it")
    range: SampleRange = Field("type", description="of more than 8 bits: what the file says, or what its data need")
    max_pixels: PositiveInt = Field(200_000_000, description="of the largest image that is decoded")
    max_seconds: PositiveFloat = Field(20.0, description="for decoding one image")
    first_folder: FirstFolder = Field("auto", description="of a path: a class or a split; auto: by the names")
    validation_fraction: float = Field(0.1, gt=0.0, lt=1.0, description="where the source names no such split")
    duplicates: Literal["keep", "drop"] = Field("keep", description="all near-duplicates, or only the first of each")
    duplicate_distance: NonNegativeFloat = Field(0.4, description="of near-duplicates, as a share of their contrast")
    limits: DataLimits = DataLimits()

    @field_validator("image_size", mode="before")
    @classmethod
    def _one_side_or_two(cls, value: Any) -> Any:
        # One message; a union of types would give one per type.
        sides = value if isinstance(value, list | tuple) else (value, value)
        if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise PydanticCustomError("image_size", "write the pixels of a side, or [height, width]")
        return tuple(value) if isinstance(value, list) else value

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def channels(self) -> int:
        """Channels of the images: 1 (gray), 3 (RGB) or 4 (RGBA)."""
        return {"grayscale": 1, "rgb": 3, "rgba": 4}[self.color]

    @property
    def decoding(self) -> Decoding:
        """How files are decoded."""
        return Decoding(
            self.size,
            self.channels,
            self.range,
            self.color_profile,
            self.max_pixels,
            self.max_seconds,
            self.crop,
            self.min_size,
            self.max_aspect,
            self.linear_light,
        )


class ReferenceSettings(Section):
    """The feature extractor of the evaluation and its training."""

    seed: Seed = 0
    features: PositiveInt = 64
    images: PositiveInt = Field(description="training budget, in images")
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 3e-3


class SampleSettings(Section):
    """How the trained model is sampled."""

    count: int = Field(1000, ge=5)
    seed: Seed = 0
    sampler: Annotated[SamplerChoice, BY_KIND]
    guidance: Guidance = Guidance()


class EvaluateSettings(Section):
    """How the samples are measured."""

    seed: Seed = 0
    half_size: int = Field(5_000, ge=3, le=20_000, description="real images, at most, in each compared half")
    extractors: tuple[Annotated[ExtractorChoice, BY_KIND], ...] = Field((), description="beside the domain's own")
    metrics: tuple[Annotated[MetricChoice, BY_KIND], ...] = Field(default_factory=every_metric, min_length=1)

    @model_validator(mode="after")
    def _no_figure_is_measured_twice(self) -> Self:
        if double := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(
                f"metrics gives {', '.join(double)} more than once: leave one out, or give extractors other names"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics."""
        own = tuple(name for metric in self.metrics for name in metric.figures)
        others = (
            prefixed(each.name, name)
            for each in self.extractors
            for name in (*own, *(Fid.figures if each.is_published else ()))
        )
        return (*own, *others)

    @property
    def figures(self) -> tuple[str, ...]:
        """The names in metrics/evaluate.json."""
        return (*COUNTS, *(f"{name}{suffix}" for name in self.names for suffix in SUFFIXES))


class Limit(Section):
    """Absolute bounds of one value in metrics/evaluate.json."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("a limit needs at_most or at_least")
        return self


class Comparison(Section):
    """When one metric is not worse than the champion's."""

    better: Literal["lower", "higher"]
    margin: float = Field(
        1.0, ge=0.0, description="how much worse is still the same, in halves of the difference's 95% interval"
    )


class PromoteSettings(Section):
    """The gate of the alias `champion`."""

    limits: dict[str, Limit] = Field(default_factory=dict)
    champion: dict[str, Comparison] = Field(default_factory=dict)


class Settings(Section):
    """All sections of params.yaml."""

    ingest: IngestSettings
    prepare: PrepareSettings
    reference: ReferenceSettings
    train: TrainSettings
    sample: SampleSettings
    evaluate: EvaluateSettings
    promote: PromoteSettings

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Self:
        # As written in the file.
        image_size = self.prepare.model_dump(mode="json")["image_size"]
        if min(self.prepare.size) < SMALLEST_IMAGE:
            raise ValueError(
                f"prepare.image_size is {image_size}; evaluation needs at least {SMALLEST_IMAGE} on each side"
            )
        downsampling = 2 ** (len(self.train.network.dim_mults) - 1)
        if any(side % downsampling for side in self.prepare.size):
            raise ValueError(
                f"prepare.image_size is {image_size}; with {len(self.train.network.dim_mults)} levels in"
                f" train.network.dim_mults each side must be a multiple of {downsampling}"
            )
        try:
            self.train.process.check_sampler(self.sample.sampler)
        except ValueError as error:
            raise ValueError(f"sample.sampler does not fit train.process: {error}") from None
        scale = self.sample.guidance.scale
        if scale != 1.0 and not self.train.network.class_conditional:
            raise ValueError(
                f"sample.guidance.scale is {scale}; it must be 1.0 where train.network.class_conditional is false"
            )
        if scale != 1.0 and self.train.network.cond_drop_prob == 0.0:
            raise ValueError(
                f"sample.guidance.scale is {scale}; it must be 1.0 where train.network.cond_drop_prob is 0.0"
            )
        _check_figures("promote.limits", self.promote.limits, self.evaluate.figures)
        _check_figures("promote.champion", self.promote.champion, self.evaluate.names)
        return self


def _check_figures(key: str, names: Collection[str], figures: Sequence[str]) -> None:
    for name in names:
        if name not in figures:
            raise ValueError(
                f"{key} names {name}, which evaluate.metrics does not measure: {hint(name, figures)}use one of"
                f" {', '.join(figures)}"
            )
