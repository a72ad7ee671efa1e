"""Registers LookupViT's names with timm once timm is imported, so that `import lookupvit` alone stays quick.

timm has no entry points for models of others, and importing timm here would make `lookupvit --help` wait for torch.
Whoever wants no finder on `sys.meta_path` imports timm first: names are registered at once then.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _AfterTimm(MetaPathFinder):
    """Has timm found by the finders that would find it anyway, and adds the registration to the end of its import.

    Being asked changes nothing, for libraries look whether timm is there without importing it; the finder goes when
    timm is imported.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        found = (finder.find_spec(fullname, path, target) for finder in list(sys.meta_path) if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            import_module("lookupvit.interop.timm_registry")

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Waits for the first import of timm."""
    if not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())
