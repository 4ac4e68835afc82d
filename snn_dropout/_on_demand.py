"""Public names whose modules are imported when they are asked for (PEP 562)."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_demand(
    package: str, places: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package, which find each name in its place.

    A place is the module of the package that has the name. Modules of the package are
    found as well, as if it had imported all of them.
    """

    def find(name: str) -> Any:
        if name in places and name != places[name]:
            module = importlib.import_module(f"{package}.{places[name]}")
            found = getattr(module, name)
        elif name.isidentifier() and importlib.util.find_spec(f"{package}.{name}"):
            found = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, found)  # asked for once
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return find, names
