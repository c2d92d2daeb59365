"""The section `train`: the run, the network and the process."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from diffusion_core.config.section import BY_KIND, Fraction, Section, Seed
from diffusion_core.process.loss import DiffusionLoss
from diffusion_core.process.losses import LossChoice
from diffusion_core.process.noise_schedule import NoiseSchedule
from diffusion_core.process.objectives import choose_objective
from diffusion_core.process.schedules import ScheduleChoice
from diffusion_core.process.weightings import WeightingChoice
from diffusion_core.samplers.protocols import Sampler

# Keys of the section that say what is reported on the way. DVC does not watch them.
REPORTED = {"report_every_images", "preview_every_images"}
# These cannot change the weights after each step either: how far it goes, and what would stop it. What it
# begins from is known by its digest.
NOT_OF_WEIGHTS = REPORTED | {"images", "minutes", "max_skipped_share", "parent"}
# Keys that are not arguments of `Trainer`.
NOT_THE_TRAINERS = REPORTED | {
    *("network", "process", "parent", "minutes", "validate_every_images", "validation_share"),
}


def _name(value: object) -> object:
    """A version's number is its name, which YAML reads as a number."""
    return str(value) if type(value) is int else value


class NetworkSettings(Section):
    """The U-Net; keys are the arguments of `Unet`."""

    dim: int = Field(64, ge=4, multiple_of=2)
    dim_mults: tuple[PositiveInt, ...] = Field((1, 2, 4), min_length=1)
    full_attn: tuple[bool, ...] | None = Field(None, description="one a level; None: the innermost only")
    linear_attn: bool = True
    sinusoidal_pos_emb_theta: PositiveFloat = Field(10_000.0, description="longest period of the time embedding")
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
    beta_schedule: Annotated[ScheduleChoice, BY_KIND]
    zero_terminal_snr: bool = False
    weighting: Annotated[WeightingChoice, BY_KIND]
    loss: Annotated[LossChoice, BY_KIND]
    vb_loss_weight: float = Field(0.001, ge=0.0, description="of the bound, where the variance is learned")
    offset_noise_strength: float = Field(0.0, ge=0.0)
    immiscible: bool = False

    @model_validator(mode="after")
    def _process_exists(self) -> Self:
        DiffusionLoss(
            self._schedule(),
            choose_objective(self.objective, self.zero_terminal_snr),
            self.weighting,
            self.loss,
            offset_noise_strength=self.offset_noise_strength,
            immiscible=self.immiscible,
        )
        return self

    def check_sampler(self, sampler: Sampler) -> None:
        """Check that a sampler fits this process.

        Raises:
            ValueError: it does not, for example because it has more steps than timesteps.
        """
        sampler.transitions(self._schedule())

    def _schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.beta_schedule, self.timesteps, self.zero_terminal_snr)


class TrainSettings(Section):
    """The training run; amounts of training are in images, so that they do not depend on the batch size."""

    model_config = ConfigDict(serialize_by_alias=True)

    parent: Annotated[str | None, BeforeValidator(_name)] = Field(
        None, alias="from", description="model whose weights it begins from; None: random ones"
    )
    seed: Seed = 0
    images: PositiveInt = Field(description="training budget, in images")
    minutes: PositiveFloat | None = Field(None, description="the training ends after these, if it was not done before")
    batch_size: PositiveInt = 64
    accumulate: PositiveInt = Field(1, description="micro-batches a step; divides batch_size")
    learning_rate: PositiveFloat = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0.0)
    warmup_images: int = Field(0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    ema_halflife_images: PositiveFloat = 50_000
    horizontal_flip: bool = False
    shuffle_window: PositiveInt | None = Field(None, description="images in random order at a time; None: all")
    max_skipped_share: Fraction = Field(0.05, description="of the steps, whose loss or gradient is not finite")
    validate_every_images: PositiveInt = Field(50_000, description="and at the end: the validation loss")
    validation_share: Fraction = Field(0.05, description="of the computation, for validation; 0: the last weights")
    report_every_images: PositiveInt = 10_000
    preview_every_images: PositiveInt = 100_000
    network: NetworkSettings
    process: ProcessSettings

    def of_weights(self) -> dict[str, Any]:
        """Return the keys that determine the weights after each step, as JSON values."""
        return self.model_dump(mode="json", exclude=NOT_OF_WEIGHTS)

    def of_trainer(self) -> dict[str, Any]:
        """Return the arguments of `Trainer`; from trained weights, their average needs no ramp."""
        return self.model_dump(exclude=NOT_THE_TRAINERS) | ({} if self.parent is None else {"ema_rampup_ratio": None})

    @model_validator(mode="after")
    def _micro_batches_are_whole(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate is {self.accumulate}; it must divide batch_size, which is {self.batch_size}")
        return self
