"""The commands about models: who is the champion, why, how runs compare, and images of any model."""

from pathlib import Path
from typing import Annotated

import typer

from diffusion_core.config.environment import load_environment
from diffusion_core.errors import UserError

commands = typer.Typer()


@commands.command(epilog="Example: diffusion rollback")
def rollback(
    version: Annotated[
        int | None, typer.Argument(help="Of the registered model; by default the champion before.")
    ] = None,
) -> None:
    """Move the alias champion back to an earlier version.

    The version that it leaves is rejected: no later run promotes it again."""
    from diffusion_core.stages.rollback import run

    run(load_environment(), version)


@commands.command(epilog="Example: diffusion history")
def history(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Write a calendar of all runs: plots/history.html.")] = False,
) -> None:
    """Show who was the champion when, by which metrics and why."""
    from diffusion_core.stages.history import run, write_page

    if page and as_json:
        raise UserError("--page and --json exclude each other: name one")
    if page:
        from diffusion_core.checkout import flow_runs

        environment = load_environment()
        write_page(environment, flow_runs(environment.registered_model))
    else:
        run(load_environment(), as_json)


@commands.command(epilog="Example: diffusion decide 3")
def decide(
    version: Annotated[int, typer.Argument(help="Of the registered model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it with its grounds as JSON.")] = False,
) -> None:
    """Make the gate's decision on a version again.

    It needs the registry alone; exit code 2 if the decision differs."""
    from diffusion_core.stages.decide import run

    run(load_environment(), version, as_json)


@commands.command(epilog="Example: diffusion compare champion 3")
def compare(
    runs: Annotated[list[str], typer.Argument(help="Versions, aliases of the registered model, or ids of runs.")],
) -> None:
    """Show runs side by side: plots/compare.html."""
    from diffusion_core.stages.compare import run

    run(load_environment(), runs)


@commands.command(epilog="Example: diffusion trace champion")
def trace(
    version: Annotated[str, typer.Argument(help="NAME@ALIAS, NAME/NUMBER, or an alias or a number.")] = "champion",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show where a version comes from: plots/trace.html.

    Code, images, parameters, machine, metrics, runs and parents, and what differs from the champion before."""
    from diffusion_core.stages.trace import run

    run(load_environment(), version, as_json)


@commands.command(epilog="Example: diffusion reproduce diffusion/3")
def reproduce(
    version: Annotated[str, typer.Argument(help="NAME/NUMBER, NAME@ALIAS, or an alias or a number.")],
    out: Annotated[
        Path | None, typer.Option(help="A folder for its worktree; by default below .cache/reproduced.")
    ] = None,
) -> None:
    """Train a version again, and compare the weights.

    It runs the recorded commit and changes, on the recorded data. Registry and models/ stay as they are. Exit code 1 if
    the weights differ."""
    from diffusion_core.stages.reproduce import run

    if not run(load_environment(), version, out):
        raise typer.Exit(1)


@commands.command(epilog="Example: diffusion draw champion --n 64 --class cat --seed 7 --out cats")
def draw(
    model: Annotated[str, typer.Argument(help="A folder, NAME@ALIAS, NAME/NUMBER, an alias, a number, or a run.")],
    n: Annotated[int, typer.Option(help="Number of images.")] = 16,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Of all images; by default as often as in the training images.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Image i depends on it and on i alone.")] = 0,
    sampler: Annotated[str, typer.Option(help="ddim, ddpm, dpm_solver or heun.")] = "ddim",
    steps: Annotated[int | None, typer.Option(help="Of the sampler.")] = None,
    guidance: Annotated[float, typer.Option(help="Above 1, images are more typical of their class.")] = 1.0,
    image: Annotated[Path | None, typer.Option(help="A file that is noised and denoised, or filled in.")] = None,
    strength: Annotated[float, typer.Option(help="Of the noise that --image gets: 1 leaves nothing of it.")] = 0.6,
    mask: Annotated[Path | None, typer.Option(help="A file that is white where --image is filled in.")] = None,
    to: Annotated[int | None, typer.Option(help="Make a strip from --seed to this seed.")] = None,
    out: Annotated[Path, typer.Option(help="A new folder, or a file: .png for a grid, .npy for an array.")] = Path(
        "drawn"
    ),
) -> None:
    """Sample images from any model: PNG files, a grid or an array."""
    from diffusion_core.stages.draw import request, run

    wanted = request(n, class_name, seed, sampler, steps, guidance, image, strength, mask, to)
    run(load_environment(), model, wanted, out)


@commands.command("serve-model", epilog="Example: diffusion serve-model diffusion@champion --port 8000")
def serve_model(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS, which is followed, NAME/NUMBER, an alias or a number.")],
    host: Annotated[str, typer.Option(help="0.0.0.0 for other machines, which need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of the server.")] = 8000,
) -> None:
    """Answer POST /images with images of a registered model."""
    from diffusion_core.stages.serving import serve_model

    serve_model(load_environment(), model, host, port)


@commands.command(epilog="Example: diffusion gallery")
def gallery(
    model: Annotated[str | None, typer.Argument(help="A registered model; by default the environment's.")] = None,
    port: Annotated[int, typer.Option(help="Of the page.")] = 8001,
) -> None:
    """Look at the versions of a registered model in a browser."""
    from diffusion_core.stages.serving import gallery

    gallery(load_environment(), model, port)
