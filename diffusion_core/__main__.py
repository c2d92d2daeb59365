"""The command line: `python -m diffusion_core <stage>`; what to do is in params.yaml, where in the environment."""

import errno
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, CliApp, CliImplicitFlag, CliPositionalArg, CliSubCommand, SettingsConfigDict

from diffusion_core.config.environment import Environment, load_environment
from diffusion_core.errors import UserError

# Seconds that a process waits with its mistake for the first one's.
SECONDS_TO_TELL = 3.0

DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Stage(BaseModel):
    """A stage: its class is called like its module in `diffusion_core.stages`."""

    def cli_cmd(self) -> None:
        """Run it with the sections of params.yaml that its function asks for, in as many processes as are wanted."""
        # Imported only now, so that --help and a mistyped stage do not wait for PyTorch.
        from diffusion_core.config.params import load_settings

        settings, environment = load_settings(), load_environment()
        name = type(self).__name__.lower()
        run: Callable[..., None] = import_module(f"diffusion_core.stages.{name}").run
        takes = inspect.signature(run).parameters
        arguments: dict[str, object] = {each: getattr(settings, each) for each in takes if hasattr(settings, each)}
        if "environment" in takes:
            arguments["environment"] = environment
        if "ranks" in takes:
            self._shared(name, run, arguments, environment)
        else:
            run(**arguments)

    def _shared(
        self, name: str, run: Callable[..., None], arguments: dict[str, object], environment: Environment
    ) -> None:
        from diffusion_core.runtime.device import choose_device, choose_processes
        from diffusion_core.runtime.distributed import is_started, process_group
        from diffusion_core.runtime.launch import end_with_parent, launch

        device = choose_device(environment.device)
        if not is_started() and (count := choose_processes(environment.processes, device)) > 1:
            sys.exit(launch([name], count))
        if is_started():
            end_with_parent()
        with process_group(device) as ranks:
            run(**arguments, ranks=ranks)


class Ingest(Stage):
    """Bring the images, as they are, into data/raw."""


class Prepare(Stage):
    """Decode the images into data/prepared; what cannot be decoded is quarantined."""


class Reference(Stage):
    """Make what evaluation needs of the real images: data/reference."""


class Train(Stage):
    """Train the model, or go on with an interrupted training: models/."""


class Sample(Stage):
    """Draw images from the trained model: samples/."""


class Evaluate(Stage):
    """Measure the samples against the real images: metrics/evaluate.json and plots/."""


class Publish(Stage):
    """Register the model as a version in MLflow."""


class Promote(Stage):
    """Move the alias `champion` to the published version if it passes the gate."""


class ImportLucidrains(BaseModel):
    """Bring a checkpoint of denoising-diffusion-pytorch: weights alone are read, and its options are inferred."""

    checkpoint: CliPositionalArg[Path] = Field(description="model-100.pt, say, of its Trainer; or a state_dict")
    out: Path = Field(Path("imported"), description="folder for model.safetensors, model.json and online.safetensors")
    image_size: str = Field("32", description="of the images, which no checkpoint tells: 64, or 48x64 (height first)")
    objective: str = Field(
        "auto", description="pred_noise, pred_x0 or pred_v, where the file does not tell or is to be overruled"
    )
    beta_schedule: str = Field("auto", description="linear, cosine or sigmoid, likewise")

    def cli_cmd(self) -> None:
        """Write the model."""
        from diffusion_core.stages.import_lucidrains import run

        run(self.checkpoint, self.out, self.image_size, self.objective, self.beta_schedule)


class Upload(BaseModel):
    """Put a folder of images into a bucket, without those that are there already."""

    folder: CliPositionalArg[Path] = Field(description="of the images; its sub-folders' names are the classes")
    url: CliPositionalArg[str] = Field(description="s3://bucket/prefix, which params.yaml names as ingest.source.url")

    def cli_cmd(self) -> None:
        """Send the images."""
        from diffusion_core.stages.upload import run

        run(self.folder, self.url, load_environment())


class Remote(BaseModel):
    """Tell DVC, on this machine, of the bucket in DIFFUSION_DVC_REMOTE where machines share outputs."""

    def cli_cmd(self) -> None:
        """Look at the bucket and write .dvc/config.local."""
        from diffusion_core.stages.remote import run

        run(load_environment())


class Doctor(BaseModel):
    """Check that each device of this machine computes correctly; exit code 1 if not."""

    as_json: CliImplicitFlag[bool] = Field(False, alias="json", description="JSON, for scripts")

    def cli_cmd(self) -> None:
        """Print what was compared."""
        from diffusion_core.stages.doctor import run

        run(load_environment(), self.as_json)


class CommandLine(BaseSettings):
    """Diffusion models of your own images. The stages in their order: each reads what those before it wrote."""

    model_config = SettingsConfigDict(cli_prog_name="python -m diffusion_core", cli_kebab_case=True)

    ingest: CliSubCommand[Ingest]
    prepare: CliSubCommand[Prepare]
    reference: CliSubCommand[Reference]
    train: CliSubCommand[Train]
    sample: CliSubCommand[Sample]
    evaluate: CliSubCommand[Evaluate]
    publish: CliSubCommand[Publish]
    promote: CliSubCommand[Promote]
    import_lucidrains: CliSubCommand[ImportLucidrains]
    upload: CliSubCommand[Upload]
    remote: CliSubCommand[Remote]
    doctor: CliSubCommand[Doctor]

    def cli_cmd(self) -> None:
        """Run the stage that was named."""
        CliApp.run_subcommand(self)


def main() -> None:
    """Run one stage; exit code 2 and a sentence for a mistake or a disk that refuses, 75 for a server that is down."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # What a training chooses on its way.
    logging.getLogger("diffusion_core").setLevel(logging.INFO)
    try:
        CliApp.run(CommandLine, cli_args=sys.argv[1:] or ["--help"])
    except UserError as error:
        # All processes of a stage make the same mistake at once: the first tells of it, and the launcher ends the rest.
        time.sleep(0.0 if int(os.environ.get("RANK", "0")) == 0 else SECONDS_TO_TELL)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in DISK_REFUSES:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"error: the disk refuses{where} ({error.strerror}): make room or correct its rights", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
