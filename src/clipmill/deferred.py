"""Libraries without those of their own imports that this process may never use.

KServe imports kubernetes and pandas, torchvision the compiler of torch, open_clip transformers:
seconds each, for functions that nobody here calls. Inside :func:`deferred` such an import gives a
stand-in, and the real thing is imported when it is first used. It is what Python 3.15 calls a lazy
import (PEP 810), from outside.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@contextmanager
def deferred(*packages: str) -> Iterator[None]:
    """Inside, importing one of these packages or their submodules gives a stand-in.

    What was imported before is left as it is; outside, imports are as ever. Only one thread may
    import meanwhile.
    """
    finder = _StandInFinder([name for name in packages if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.release()


class _StandInFinder(MetaPathFinder, Loader):
    """Finds stand-ins for packages until they are released."""

    def __init__(self, packages: list[str]) -> None:
        self._packages = packages
        self._found: list[str] = []

    @property
    def is_active(self) -> bool:
        return bool(self._packages)

    def release(self) -> None:
        """Let all imports find the real modules from now on."""
        self._packages = []
        for name in self._found:
            sys.modules.pop(name, None)
            package, _, child = name.rpartition(".")
            if isinstance(vars(sys.modules.get(package, self)).get(child), _StandInModule):
                delattr(sys.modules[package], child)
        self._found = []

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        del path, target
        package = next((p for p in self._packages if f"{fullname}.".startswith(f"{p}.")), None)
        if package is None or (fullname == package and not self._is_installed(package)):
            return None
        self._found.append(fullname)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: that is the point."""

    def _is_installed(self, package: str) -> bool:
        packages, self._packages = self._packages, []
        try:
            return find_spec(package) is not None
        finally:
            self._packages = packages


class _StandInModule(ModuleType):
    """A module whose attributes are stand-ins."""

    def __init__(self, name: str, finder: _StandInFinder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        stand_in = _StandIn(self._finder, lambda: _attribute(self.__name__, name))
        return stand_in if self._finder.is_active else stand_in.real()


class _StandIn:
    """What a module that isn't loaded would give; found when it is used.

    While libraries are imported, its attributes and what it returns are stand-ins too: that is
    how a method decorated with ``torch._dynamo.disable`` comes to be one.
    """

    def __init__(self, finder: _StandInFinder, find: Callable[[], Any]) -> None:
        self._finder = finder
        self._find = cache(find)

    def real(self) -> Any:
        """The thing itself."""
        self._finder.release()
        return self._find()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python looks for these in whatever it meets
            raise AttributeError(name)
        return self._later(lambda: getattr(self.real(), name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._later(lambda: self.real()(*args, **kwargs))

    def __get__(self, instance: object, owner: type) -> Any:
        return self.real().__get__(instance, owner)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        del bases
        return (self.real(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.real())

    def _later(self, find: Callable[[], Any]) -> Any:
        return _StandIn(self._finder, find) if self._finder.is_active else find()


def _attribute(module: str, name: str) -> Any:
    """What ``from module import name`` gives."""
    found = importlib.import_module(module)
    if hasattr(found, name):
        return getattr(found, name)
    return importlib.import_module(f"{module}.{name}")
