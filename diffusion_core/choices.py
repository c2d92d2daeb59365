"""The choices of `kind: ...` in params.yaml: unions of frozen dataclasses.

To add a schedule, weighting or loss, add a class to its file. To add a sampler, source or metric, add a file to its
folder. List the class in the union next to it. Dotted paths are never imported, and packages are never scanned.
"""

from dataclasses import fields
from types import UnionType
from typing import Any, ClassVar, get_args


class Options:
    """Base class of all frozen dataclasses in params.yaml."""

    # pydantic reads this to check params.yaml; the library does not need pydantic.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


class Choice(Options):
    """Base class of all choices: frozen dataclasses with their name in the field `kind`."""


def choices(union: UnionType) -> dict[str, type[Any]]:
    """Return the classes of a union by their `kind`."""
    return {_kind(choice): choice for choice in get_args(union)}


def choose(union: UnionType, kind: str, argument: str, **options: Any) -> Any:
    """Return an instance of the class with the name `kind`.

    Args:
        union: the union of the classes.
        kind: name of one of them.
        argument: name of the argument that is set, for messages.
        **options: fields of the class.

    Raises:
        ValueError: the name or an option is unknown; the message lists the valid ones.
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
