"""Lazy imports: skip heavy transitive dependencies that a process never uses.

KServe imports kubernetes and pandas, torchvision torch's compiler, open_clip transformers: seconds
each, for functions that a server never calls. Within :func:`lazy_imports` such an import returns a
placeholder, and the real module is imported when it is first used: Python 3.15's lazy imports
(PEP 810), applied from outside. lazy-loader defers the imports that a package writes with it, not
those inside other libraries.
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
def lazy_imports(*packages: str) -> Iterator[None]:
    """Within the block, return placeholders for imports of these packages and their submodules.

    Modules that were imported before are left as they are. Only one thread may import meanwhile.
    """
    finder = _LazyFinder([name for name in packages if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.release()


class _LazyFinder(MetaPathFinder, Loader):
    """Finds placeholders for packages until they are released."""

    def __init__(self, packages: list[str]) -> None:
        self._packages = packages
        self._created: list[str] = []

    @property
    def is_active(self) -> bool:
        return bool(self._packages)

    def release(self) -> None:
        """Let all imports find the real modules from now on."""
        self._packages = []
        for name in self._created:
            sys.modules.pop(name, None)
            package, _, child = name.rpartition(".")
            if isinstance(vars(sys.modules.get(package, self)).get(child), _LazyModule):
                delattr(sys.modules[package], child)
        self._created = []

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
        self._created.append(fullname)
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LazyModule(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module isn't executed."""

    def _is_installed(self, package: str) -> bool:
        packages, self._packages = self._packages, []
        try:
            return find_spec(package) is not None
        finally:
            self._packages = packages


class _LazyModule(ModuleType):
    """A module whose attributes are placeholders."""

    def __init__(self, name: str, finder: _LazyFinder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = _LazyAttribute(self._finder, lambda: _attribute(self.__name__, name))
        return attribute if self._finder.is_active else attribute.real()


class _LazyAttribute:
    """Placeholder of an attribute of a module that isn't imported; resolved when it is used.

    While libraries are imported, its attributes and results are placeholders too, such as a method
    decorated with ``torch._dynamo.disable``.
    """

    def __init__(self, finder: _LazyFinder, find: Callable[[], Any]) -> None:
        self._finder = finder
        self._find = cache(find)

    def real(self) -> Any:
        """Return the object itself."""
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
        return _LazyAttribute(self._finder, find) if self._finder.is_active else find()


def _attribute(module: str, name: str) -> Any:
    """Return what ``from module import name`` binds."""
    module_object = importlib.import_module(module)
    if hasattr(module_object, name):
        return getattr(module_object, name)
    return importlib.import_module(f"{module}.{name}")
