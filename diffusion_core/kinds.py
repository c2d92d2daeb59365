"""What `kind: ...` in params.yaml can name: the classes of one package, one a file.

A new sampler, schedule, weighting, source or metric is a new file beside its siblings; nothing else lists it.
Only siblings are ever found: a dotted path in a file is a name that no sibling has.
"""

import pkgutil
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any, ClassVar


class Options:
    """Base of every frozen dataclass that params.yaml can hold."""

    # pydantic reads this when params.yaml is checked; the library itself does without pydantic.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


class Kind(Options):
    """Base of every choice: a frozen dataclass whose field `kind` is the name it is chosen by."""


@cache
def kinds(package: str) -> dict[str, type[Any]]:
    """Return the choices of `package` (a dotted name) by their `kind`."""
    found: dict[str, type[Any]] = {}
    for module_info in pkgutil.iter_modules(import_module(package).__path__):
        module = import_module(f"{package}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Kind) and value.__module__ == module.__name__:
                found[_name(value)] = value
    return found


def choose(package: str, kind: str, argument: str, **options: Any) -> Any:
    """Build the choice called `kind`.

    Raises:
        ValueError: no sibling has that name, or it has no such option; the message lists those that exist.
    """
    choices = kinds(package)
    if kind not in choices:
        raise ValueError(f"{argument} is {kind!r}; it must be one of {', '.join(sorted(choices))}")
    known = [field.name for field in fields(choices[kind]) if field.name != "kind"]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{argument} {kind} has no option {unknown[0]}; it has {', '.join(known) or 'none'}")
    return choices[kind](**options)


def _name(choice: type[Any]) -> str:
    return next(str(field.default) for field in fields(choice) if field.name == "kind")
