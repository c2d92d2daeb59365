"""The page `plots/history.html`: a calendar of runs. It needs no other file, no network and no script."""

import calendar
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from diffusion_core.report.templating import templates

TEMPLATE = "history.html.jinja"


@dataclass(frozen=True)
class Night:
    """A run, or an event of the registry that no run made.

    Attributes:
        time: when it began, ISO 8601 with a time zone.
        outcome: one word: promoted, refused, unchanged, rollback, failed, crashed.
        sentence: what became of it, and why.
        metrics: of the version that it decided on, by name, as text.
        pages: addresses of its pages by what they are called.
    """

    time: str
    outcome: str
    sentence: str
    metrics: Mapping[str, str]
    pages: Mapping[str, str]

    @property
    def begun(self) -> datetime:
        """The time in UTC."""
        return datetime.fromisoformat(self.time).astimezone(UTC)


@dataclass(frozen=True)
class Month:
    """A month: its name, its weeks of seven days (None outside the month), and its runs, the newest first."""

    name: str
    weeks: list[list[tuple[int, list[Night]] | None]]
    nights: list[Night]


def history(title: str, nights: Sequence[Night], shown: str) -> str:
    """Return the page as HTML.

    Args:
        title: name of the model.
        nights: the runs.
        shown: the metric that the calendar itself shows.
    """
    names = dict.fromkeys(name for night in nights for name in night.metrics)
    return templates().get_template(TEMPLATE).render(title=title, months=months(nights), metrics=[*names], shown=shown)


def months(nights: Sequence[Night]) -> list[Month]:
    """Return the months with a run, the newest first."""
    of_day: dict[date, list[Night]] = {}
    for night in sorted(nights, key=lambda each: each.begun):
        of_day.setdefault(night.begun.date(), []).append(night)
    found = []
    for year, month in sorted({(day.year, day.month) for day in of_day}, reverse=True):
        weeks = [
            [(day, of_day.get(date(year, month, day), [])) if day else None for day in week]
            for week in calendar.monthcalendar(year, month)
        ]
        own = [night for day, each in of_day.items() if (day.year, day.month) == (year, month) for night in each]
        found.append(Month(f"{calendar.month_name[month]} {year}", weeks, own[::-1]))
    return found
