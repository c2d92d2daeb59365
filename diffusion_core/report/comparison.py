"""The page `plots/compare.html`: runs side by side. It needs no other file, no network and no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.metrics.estimate import difference
from diffusion_core.report.curves import HEIGHT, WIDTH, Chart
from diffusion_core.report.templating import templates

TEMPLATE = "compare.html.jinja"
# More lines in a chart would look alike.
MOST_RUNS = 6


@dataclass(frozen=True)
class Column:
    """A run.

    Attributes:
        title: what it is called.
        decision: the gate's sentence, or empty.
        evaluation: the metrics of its samples, or None.
        params: its parameters by dotted name.
        facts: cost and origin, by name; values may be addresses.
        samples: address of a picture, or empty.
    """

    title: str
    decision: str
    evaluation: Evaluation | None
    params: Mapping[str, str]
    facts: Mapping[str, str]
    samples: str


@dataclass(frozen=True)
class Cell:
    """A metric of a run, as text: the value with half of its interval, and likewise the difference from the first."""

    value: str
    change: str = ""


def comparison(columns: Sequence[Column], charts: Sequence[Chart]) -> str:
    """Return the page as HTML; the first column is the one that the others are compared with."""
    return (
        templates()
        .get_template(TEMPLATE)
        .render(
            columns=columns,
            charts=charts,
            titles=dict(enumerate((column.title for column in columns), start=1)),
            metrics=metric_cells([column.evaluation for column in columns]),
            floors=floors([column.evaluation for column in columns]),
            params=differing([column.params for column in columns]),
            facts=all_rows([column.facts for column in columns]),
            width=WIDTH,
            height=HEIGHT,
        )
    )


def metric_cells(evaluations: Sequence[Evaluation | None]) -> dict[str, list[Cell]]:
    """Return a row of cells for each metric that a run has; differences are of evaluations with the same key alone."""
    first = evaluations[0]
    names = [name for each in evaluations if each is not None for name in each.estimates]

    def cell(evaluation: Evaluation | None, name: str) -> Cell:
        estimate = None if evaluation is None else evaluation.estimates.get(name)
        if evaluation is None or estimate is None:
            return Cell("none")
        value = f"{estimate.value:.4g} ± {estimate.half_width:.2g}"
        other = None if first is None or first.key != evaluation.key else first.estimates.get(name)
        if other is None or evaluation is first:
            return Cell(value)
        more, width = difference(estimate, other)
        return Cell(value, f"{more:+.3g} ± {width:.2g}")

    return {name: [cell(each, name) for each in evaluations] for name in dict.fromkeys(names)}


def floors(evaluations: Sequence[Evaluation | None]) -> dict[str, str]:
    """Return the value of real images for each metric; "differs" where runs were measured against other images."""
    found: dict[str, str] = {}
    for evaluation in evaluations:
        for name, each in ({} if evaluation is None else evaluation.estimates).items():
            floor = f"{each.floor:.4g}"
            found[name] = floor if found.get(name, floor) == floor else "differs"
    return found


def differing(values: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the values of each name that are not the same in all runs."""
    rows = all_rows(values)
    return {name: row for name, row in sorted(rows.items()) if len(set(row)) > 1}


def all_rows(values: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the values of each name that a run has, "none" where one does not have it."""
    names = dict.fromkeys(name for each in values for name in each)
    return {name: [each.get(name, "none") for each in values] for name in names}
