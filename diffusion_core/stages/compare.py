"""Write plots/compare.html, a page that shows runs of the tracking store side by side."""

import base64

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.registry.compared import Compared, compared
from diffusion_core.registry.connection import answering, connect
from diffusion_core.report.comparison import MOST_RUNS, Column, comparison
from diffusion_core.report.curves import Chart, chart
from diffusion_core.stages.paths import COMPARISON

# Metrics of the training, by what they are called on the page.
METRICS = {"train/loss": "Loss", "validation/loss": "Validation loss", "train/images_per_second": "Images a second"}


def run(environment: Environment, names: list[str]) -> None:
    """Write the page of these runs; the others are compared with the first.

    Args:
        environment: the environment, with store and registered model.
        names: numbers or aliases of versions of the registered model, or ids of runs.

    Raises:
        UserError: there is only one, there are too many, one is named twice, or one does not exist.
        Unavailable: the tracking store does not answer.
    """
    if not 2 <= len(names) <= MOST_RUNS:
        raise UserError(
            f"compare takes 2 to {MOST_RUNS} runs, and not {len(names)}: name versions, aliases or ids of runs"
        )
    client = connect(environment, may_create=False)
    with answering(environment):
        found = compared(client, environment, names, list(METRICS))
    pages = [each.page for each in found]
    if double := [each.title for each in found if pages.count(each.page) > 1]:
        raise UserError(f"{' and '.join(double)} are the same run: name each run once")
    COMPARISON.parent.mkdir(exist_ok=True)
    write_whole(COMPARISON, comparison([_column(each) for each in found], _charts(found)))
    print(f"compare: {COMPARISON} shows {' and '.join(each.title for each in found)}")


def _column(each: Compared) -> Column:
    picture = "" if each.samples is None else f"data:image/png;base64,{base64.b64encode(each.samples).decode()}"
    return Column(
        each.title,
        each.decision,
        each.evaluation,
        each.params,
        each.cost | {"run in MLflow": each.page} | each.origin,
        picture,
    )


def _charts(found: list[Compared]) -> list[Chart]:
    """Return each metric over images, and over seconds."""
    charts = []
    for place, unit in ((0, "images"), (1, "seconds, with pauses")):
        for metric, title in METRICS.items():
            curves = [(each.title, [(row[place], row[2]) for row in each.series.get(metric, [])]) for each in found]
            charts.append(chart(f"{title} over {unit}", unit, curves))
    return [each for each in charts if each is not None]
