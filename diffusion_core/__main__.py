"""The command `diffusion`, configured by params.yaml and the environment."""

import atexit
import gc
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

from diffusion_core.core_dumps import forbid_core_dumps
from diffusion_core.errors import UserError, is_out_of_memory

try:
    import typer

    from diffusion_core import checkout, registered
    from diffusion_core.config.environment import Environment, load_environment
except ModuleNotFoundError as missing:
    if (missing.name or "").startswith("diffusion_core"):
        raise
    print(f"error: the command needs {missing.name}: say `make setup` in a checkout of the project", file=sys.stderr)
    sys.exit(2)

# Seconds that other ranks wait before they report an error, so that the main rank reports it first. It may have to
# finish its run in the tracking store; as soon as it has ended, the launcher ends the others.
SECONDS_TO_TELL = 30.0

# Modules of `diffusion_core.stages`, in the order of their dependencies.
STAGES = {
    "ingest": "Bring the images, as they are, into data/raw.",
    "prepare": "Decode the images into data/prepared; quarantine the rest.",
    "reference": "Make what evaluation needs of real images: data/reference.",
    "train": "Train the model, or resume an interrupted training: models/.",
    "sample": "Sample images from the trained model: samples/.",
    "evaluate": "Measure the samples: metrics/evaluate.json and plots/.",
    "publish": "Register the model as a version in MLflow.",
    "promote": "Make the version the champion if it passes the gate.",
    "report": "Write the page of the run: plots/report.html.",
    "check": "Check train.from, and whether the gate can compare models.",
}

application = typer.Typer(
    name="diffusion",
    help="Diffusion models of your own images.",
    epilog="Example: diffusion train, after diffusion ingest and diffusion prepare.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        # Of the installed packages, because to import PyTorch takes seconds.
        try:
            print(f"diffusion-core {version('diffusion-core')}, PyTorch {version('torch')}")
        except PackageNotFoundError as missing:
            raise UserError(f"{missing.name} is not installed: say `make setup` in a checkout of the project") from None
        raise typer.Exit


@application.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the versions of this package and PyTorch."
        ),
    ] = False,
) -> None:
    pass


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from what is imported in the block: half a million objects that stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _run_stage(name: str) -> None:
    """Run a stage with the sections of params.yaml that its function takes, in the selected number of processes."""
    # Imported here, so that --help and a misspelled stage do not wait for PyTorch.
    with _uncollected():
        from diffusion_core.config.params import load_settings
        from diffusion_core.stages.overrides import refuse_left_overrides

        run: Callable[..., None] = import_module(f"diffusion_core.stages.{name}").run
    refuse_left_overrides()
    settings, environment = load_settings(), load_environment()
    takes = inspect.signature(run).parameters
    arguments: dict[str, object] = {each: getattr(settings, each) for each in takes if hasattr(settings, each)}
    if "environment" in takes:
        arguments["environment"] = environment
    if "ranks" in takes:
        _run_shared(name, run, arguments, environment)
    else:
        run(**arguments)


def _run_shared(name: str, run: Callable[..., None], arguments: dict[str, object], environment: Environment) -> None:
    from diffusion_core.runtime.device import choose_device, choose_processes
    from diffusion_core.runtime.distributed import is_started, process_group
    from diffusion_core.runtime.launch import launch
    from diffusion_core.supervision.tied import end_with_parent

    device = choose_device(environment.device)
    if not is_started() and (count := choose_processes(environment.processes, device)) > 1:
        sys.exit(launch([name], count))
    if is_started():
        end_with_parent()
    with process_group(device) as ranks:
        run(**arguments, ranks=ranks)


def _add_stage(name: str, sentence: str) -> None:
    @application.command(name, help=sentence, epilog=f"Example: diffusion {name}")
    def command() -> None:
        _run_stage(name)


for _name, _sentence in STAGES.items():
    _add_stage(_name, _sentence)


@application.command(
    "import",
    epilog="Example: diffusion import model-100.pt --image-size 64 --out imported",
)
def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="A file of its Trainer, for example model-100.pt, or a state_dict.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors, model.json and online.safetensors.")] = Path(
        "imported"
    ),
    image_size: Annotated[
        str, typer.Option(help="Of the images, which no checkpoint has: 64, or 48x64 (height first).")
    ] = "32",
    objective: Annotated[
        str, typer.Option(help="pred_noise, pred_x0 or pred_v; auto reads it from the file.")
    ] = "auto",
    beta_schedule: Annotated[
        str, typer.Option(help="linear, cosine or sigmoid; auto reads it from the file.")
    ] = "auto",
    sinusoidal_pos_emb_theta: Annotated[
        float, typer.Option(min=1.0, help="Of the network's time embedding, which no checkpoint has.")
    ] = 10_000.0,
) -> None:
    """Import a checkpoint of denoising-diffusion-pytorch.

    Reads only its weights, runs none of its code, and infers its options."""
    from diffusion_core.stages.import_lucidrains import run

    run(checkpoint, out, image_size, objective, beta_schedule, sinusoidal_pos_emb_theta)


@application.command(epilog="Example: diffusion upload pictures s3://bucket/pictures")
def upload(
    folder: Annotated[Path, typer.Argument(help="Folder of the images; the names of its sub-folders are the classes.")],
    url: Annotated[str, typer.Argument(help="s3://bucket/prefix, as ingest.source.url in params.yaml.")],
) -> None:
    """Upload the images of a folder that a bucket lacks."""
    from diffusion_core.stages.upload import run

    run(folder, url, load_environment())


@application.command(epilog="Example: DIFFUSION_DVC_REMOTE=s3://bucket/dvc diffusion remote")
def remote() -> None:
    """Let DVC use the bucket in DIFFUSION_DVC_REMOTE."""
    from diffusion_core.stages.remote import run

    run(load_environment())


@application.command(epilog="Example: diffusion replay")
def replay(
    any_store: Annotated[
        bool, typer.Option("--any-store", help="Send here also what waits for another store or experiment.")
    ] = False,
) -> None:
    """Send what waits for the tracking store.

    Exit code 1 if entries stay."""
    from diffusion_core.registry.tracking import replay as send
    from diffusion_core.registry.tracking import waiting

    environment = load_environment()
    print(f"replay: the tracking store has taken {send(environment, any_store):,} entries that waited")
    left = waiting(environment)
    for folder, count in left.items():
        print(f"replay: {count:,} entries stay in {folder}")
    if left:
        sys.exit(1)


@application.command(epilog="Example: diffusion verify --repair")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be had elsewhere.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Hash again what is kept; exit code 1 if something rotted.

    These are data, DVC's cache, models, checkpoints and the champion."""
    from diffusion_core.stages.verify import run

    run(load_environment(), repair, as_json)


@application.command(epilog="Example: diffusion clean --remove")
def clean(
    days: Annotated[int, typer.Option(min=0, help="Leave what is younger.")] = 7,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it; without this, only show it.")] = False,
) -> None:
    """Show what may go, and remove it on demand.

    These are checkpoints of ended trainings, downloads, leftovers and entries of DVC's cache that nothing names."""
    from diffusion_core.stages.clean import run

    run(load_environment(), days, remove)


@application.command(epilog="Example: diffusion doctor --json")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Check machine, project and servers, and say what to do.

    Exit code 1 if there is a problem. It changes nothing."""
    environment = load_environment()
    from diffusion_core.doctor.examination import run

    run(environment, as_json)


application.add_typer(registered.commands)
application.add_typer(checkout.commands)


def main() -> None:
    """Run one command; exit code 2 for what the user can correct, 75 for a server that does not answer."""
    forbid_core_dumps()
    # The collector would look for garbage among all modules as the interpreter ends, for a second.
    atexit.register(gc.freeze)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Shows the choices of a training, for example of threads.
    logging.getLogger("diffusion_core").setLevel(logging.INFO)
    try:
        application(prog_name="diffusion")
    except UserError as error:
        # All ranks of a stage raise the same error. The main rank reports it, and the launcher ends the others.
        time.sleep(0.0 if int(os.environ.get("RANK", "0")) == 0 else SECONDS_TO_TELL)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError, ImportError, OSError) as error:
        if (sentence := _refusal(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _refusal(error: Exception) -> str | None:
    """Return what to say of an error for want of memory or of a disk, or None for another error."""
    if is_out_of_memory(error):
        why = " ".join(str(error).split()) or type(error).__name__
        return (
            f"memory is too small ({why}): free some; to train, raise train.accumulate or lower train.batch_size;"
            " to sample, lower DIFFUSION_SAMPLE_BATCH_SIZE"
        )
    from diffusion_core.files import disk_refusal

    refusal = disk_refusal(error) if isinstance(error, OSError) else None
    return None if refusal is None else str(refusal)


if __name__ == "__main__":
    main()
