"""Every public struct of `ioc_wire`, by module, in order of definition."""

import importlib
import pkgutil
from typing import Any, Final

import msgspec

import ioc_wire
from ioc_wire import codec, signed

_BASES: Final = (codec.Message, codec.Document, signed.SignedPayload)


def modules() -> dict[str, Any]:
    """The modules by their name inside of the package."""
    names = sorted(found.name for found in pkgutil.iter_modules(ioc_wire.__path__))
    return {name: importlib.import_module(f"ioc_wire.{name}") for name in names}


def structs_of(module: Any) -> list[type[msgspec.Struct]]:
    """The public structs that `module` defines."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
        and value not in _BASES
    ]


def full_name(cls: type[msgspec.Struct]) -> str:
    """`dht.Ping`: names repeat between modules."""
    return f"{cls.__module__.removeprefix('ioc_wire.')}.{cls.__name__}"
