"""Modules that are imported when something of them is first asked for: many starts never need them."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType
from typing import Any


def lazily(name: str) -> ModuleType:
    """The module of that name, loaded by its first attribute. Raises `ImportError` if there is no such module."""
    if name in sys.modules:
        return sys.modules[name]
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module {name}", name=name)
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def defer(*names: str) -> None:
    """Let others that import these modules have them when they use something of them.

    Unlike `lazily` it holds however often they are imported, and what a submodule's name says is not looked at, because
    that would import its package.
    """
    for name in names:
        sys.modules.setdefault(name, _Deferred(name))


class _Deferred(ModuleType):
    """Stands for a module, which is imported by the first use of it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)
