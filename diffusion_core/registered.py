"""The commands about registered models: who is the champion, why, and how runs compare."""

from typing import Annotated

import typer

from diffusion_core.config.environment import load_environment

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
) -> None:
    """Show who was the champion when, by which metrics and why."""
    from diffusion_core.stages.history import run

    run(load_environment(), as_json)


@commands.command(epilog="Example: diffusion decide 3")
def decide(version: Annotated[int, typer.Argument(help="Of the registered model.")]) -> None:
    """Make the gate's decision on a version again.

    It needs the registry alone; exit code 2 if the decision differs."""
    from diffusion_core.stages.decide import run

    run(load_environment(), version)


@commands.command(epilog="Example: diffusion compare champion 3")
def compare(
    runs: Annotated[list[str], typer.Argument(help="Versions, aliases of the registered model, or ids of runs.")],
) -> None:
    """Show runs side by side: plots/compare.html."""
    from diffusion_core.stages.compare import run

    run(load_environment(), runs)
