"""What `kind: ...` in params.yaml can name: the classes of a union, each a frozen dataclass.

A new schedule, weighting or loss is a class beside its siblings; a new sampler, source or metric is a file beside its
siblings. Either is listed in the union next to them. No dotted path is ever imported, and no package is scanned.
"""

from dataclasses import fields
from types import UnionType
from typing import Any, ClassVar, get_args


class Options:
    """Base of every frozen dataclass that params.yaml can hold."""

    # pydantic reads this when params.yaml is checked; the library itself does without pydantic.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


class Choice(Options):
    """Base of every choice: a frozen dataclass whose field `kind` is the name it is chosen by."""


def choices(union: UnionType) -> dict[str, type[Any]]:
    """Return the classes of a union by their `kind`."""
    return {_kind(choice): choice for choice in get_args(union)}


def choose(union: UnionType, kind: str, argument: str, **options: Any) -> Any:
    """Build the choice called `kind`.

    Args:
        union: of the classes to choose from.
        kind: name of one of them.
        argument: what the choice is given to; for messages.
        **options: fields of the choice.

    Raises:
        ValueError: no class has that name, or it has no such option; the message lists those that exist.
    """
    known = choices(union)
    if kind not in known:
        raise ValueError(f"{argument} is {kind!r}; it must be one of {', '.join(sorted(known))}")
    names = [field.name for field in fields(known[kind]) if field.name != "kind"]
    if unknown := sorted(set(options) - set(names)):
        raise ValueError(f"{argument} {kind} has no option {unknown[0]}; it has {', '.join(names) or 'none'}")
    return known[kind](**options)


def _kind(choice: type[Any]) -> str:
    return next(str(field.default) for field in fields(choice) if field.name == "kind")
