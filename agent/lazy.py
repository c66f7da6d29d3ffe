"""Modules that are imported when something of them is first asked for: many starts never need them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazily(name: str) -> ModuleType:
    """The module of that name, loaded by its first attribute. Raises `ImportError` if there is no such module."""
    if name in sys.modules:
        return sys.modules[name]
    from importlib.util import LazyLoader, find_spec, module_from_spec  # noqa: PLC0415 - agentctl only defers

    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module {name}", name=name)
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def defer(*names: str, **known: Any) -> None:
    """Let others that import these modules have them when they use something of them other than what is `known`.

    Unlike `lazily` it holds however often they are imported, and what a submodule's name says is not looked at, because
    that would import its package.
    """
    for name in names:
        sys.modules.setdefault(name, _Deferred(name, known))


class _Deferred(ModuleType):
    """Stands for a module, which is imported by the first use of it."""

    def __init__(self, name: str, known: Mapping[str, Any]) -> None:
        super().__init__(name)
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)
