"""params.yaml as types: everything that changes results, one section a stage, and nothing else.

The file is checked as a whole before any stage starts, so that a slip in the last section is told at once and
not after the training.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal, Self, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from diffusion_core.data.sources import Source
from diffusion_core.kinds import kinds
from diffusion_core.metrics.features import SMALLEST_IMAGE
from diffusion_core.metrics.figures import COUNTS, Metric, every_metric
from diffusion_core.networks.unet import Unet
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.losses import Loss
from diffusion_core.process.schedules import BetaSchedule
from diffusion_core.process.weightings import Weighting
from diffusion_core.samplers import Sampler
from diffusion_core.samplers.guidance import Guidance

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# What NumPy and PyTorch both take.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class OneOf:
    """Marks a field whose value is one of a package's choices, named by its `kind`."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = tuple(kinds(self.package).values())
        return handler.generate_schema(Annotated[Union[choices], Field(discriminator="kind")])  # noqa: UP007


class Section(BaseModel):
    """Base of every section: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IngestSettings(Section):
    """Where the images come from."""

    source: Annotated[Source, OneOf("diffusion_core.data.sources")]


class PrepareSettings(Section):
    """What every image is made into."""

    image_size: int | tuple[int, int] = Field(description="of a square, or height and width")
    color: Literal["grayscale", "rgb", "rgba"]
    validation_fraction: float = Field(0.1, gt=0.0, lt=1.0)

    @field_validator("image_size", mode="before")
    @classmethod
    def _one_side_or_two(cls, value: Any) -> Any:
        # In one sentence, where a union of types would have one for each.
        sides = value if isinstance(value, list | tuple) else (value, value)
        if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise PydanticCustomError("image_size", "write a number of pixels, or [height, width]")
        return tuple(value) if isinstance(value, list) else value

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def channels(self) -> int:
        return {"grayscale": 1, "rgb": 3, "rgba": 4}[self.color]


class ReferenceSettings(Section):
    """The feature extractor that evaluation looks through, and how it is trained."""

    seed: Seed = 0
    features: PositiveInt = 64
    images: PositiveInt = Field(description="training budget, in images")
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 3e-3


class NetworkSettings(Section):
    """The U-Net; keys are the arguments of `Unet`."""

    dim: int = Field(64, ge=4, multiple_of=2)
    dim_mults: tuple[PositiveInt, ...] = Field((1, 2, 4), min_length=1)
    full_attn: tuple[bool, ...] | None = Field(None, description="one a level; None: the innermost only")
    linear_attn: bool = True
    attn_heads: PositiveInt = 4
    attn_dim_head: PositiveInt = 32
    dropout: Fraction = 0.0
    self_condition: bool = True
    learned_variance: bool = False
    class_conditional: bool = Field(True, description="where the dataset has classes")
    cond_drop_prob: Fraction = 0.1

    @model_validator(mode="after")
    def _attention_is_told_for_every_level(self) -> Self:
        if self.full_attn is not None and len(self.full_attn) != len(self.dim_mults):
            raise ValueError(
                f"full_attn has {len(self.full_attn)} values; it must have one for each of the"
                f" {len(self.dim_mults)} levels of dim_mults"
            )
        return self


class ProcessSettings(Section):
    """The process and what the network predicts; keys are the arguments of `GaussianDiffusion`."""

    timesteps: PositiveInt = 1000
    objective: Literal["pred_noise", "pred_x0", "pred_v"] = "pred_v"
    beta_schedule: Annotated[BetaSchedule, OneOf("diffusion_core.process.schedules")]
    zero_terminal_snr: bool = False
    weighting: Annotated[Weighting, OneOf("diffusion_core.process.weightings")]
    loss: Annotated[Loss, OneOf("diffusion_core.process.losses")]
    vb_loss_weight: float = Field(0.001, ge=0.0, description="of the bound, where the variance is learned")
    offset_noise_strength: float = Field(0.0, ge=0.0)
    immiscible: bool = False

    @model_validator(mode="after")
    def _process_exists(self) -> Self:
        self._build()
        return self

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse a sampler that cannot walk this process.

        Raises:
            ValueError: it takes more steps than there are timesteps, say.
        """
        sampler.transitions(self._build())

    def _build(self) -> GaussianDiffusion:
        # Which network it is changes nothing of what is checked.
        options = {name: getattr(self, name) for name in type(self).model_fields if name != "vb_loss_weight"}
        return GaussianDiffusion(Unet(4, dim_mults=(1,), channels=1), image_size=1, **options)


class TrainSettings(Section):
    """The training run; amounts of training are counted in images, so that they hold for any batch size."""

    seed: Seed = 0
    images: PositiveInt = Field(description="training budget, in images")
    batch_size: PositiveInt = 64
    accumulate: PositiveInt = Field(1, description="micro-batches a step; divides batch_size")
    learning_rate: PositiveFloat = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0.0)
    warmup_images: int = Field(0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    ema_halflife_images: PositiveFloat = 50_000
    horizontal_flip: bool = False
    report_every_images: PositiveInt = 10_000
    preview_every_images: PositiveInt = 100_000
    network: NetworkSettings
    process: ProcessSettings

    @model_validator(mode="after")
    def _micro_batches_are_whole(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate is {self.accumulate}; it must divide batch_size, which is {self.batch_size}")
        return self


class SampleSettings(Section):
    """Which images are drawn from the trained model."""

    count: int = Field(1000, ge=2)
    seed: Seed = 0
    sampler: Annotated[Sampler, OneOf("diffusion_core.samplers")]
    guidance: Guidance = Guidance()


class EvaluateSettings(Section):
    """How the samples are measured."""

    seed: Seed = 0
    half_size: int = Field(5_000, ge=2, description="real images, at most, in each half that is compared")
    metrics: tuple[Annotated[Metric, OneOf("diffusion_core.metrics.figures")], ...] = Field(
        default_factory=every_metric, min_length=1
    )

    @model_validator(mode="after")
    def _no_figure_is_measured_twice(self) -> Self:
        if double := sorted({name for name in self.figures if self.figures.count(name) > 1}):
            raise ValueError(f"metrics gives {', '.join(double)} more than once: leave one of the two out")
        return self

    @property
    def figures(self) -> tuple[str, ...]:
        """The names in metrics/evaluate.json."""
        return (*COUNTS, *(name for metric in self.metrics for name in metric.figures))


class Limit(Section):
    """An absolute bound on one figure of metrics/evaluate.json."""

    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError("a limit needs at_most or at_least")
        return self


class Comparison(Section):
    """What "not worse than the champion" means for one figure."""

    better: Literal["lower", "higher"]
    tolerance: float = Field(0.0, ge=0.0, description="how much worse is still the same, relative to the champion's")


class PromoteSettings(Section):
    """The gate in front of the alias `champion`."""

    limits: dict[str, Limit] = {}
    champion: dict[str, Comparison] = {}


class Settings(Section):
    """The whole of params.yaml."""

    ingest: IngestSettings
    prepare: PrepareSettings
    reference: ReferenceSettings
    train: TrainSettings
    sample: SampleSettings
    evaluate: EvaluateSettings
    promote: PromoteSettings

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Self:
        # As it stands in the file.
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
        _check_figures("promote.champion", self.promote.champion, self.evaluate.figures)
        return self


def _check_figures(key: str, names: Collection[str], figures: Sequence[str]) -> None:
    for name in names:
        if name not in figures:
            raise ValueError(f"{key} names {name}, which evaluate.metrics does not measure: use {', '.join(figures)}")
