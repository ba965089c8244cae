"""Takes the macOS branches wherever Linux can carry them, in this process and all its children.

Python imports this by itself where its directory is on ``PYTHONPATH``: ``make test-as-macos``. What
only a Mac has (its peer credentials, sockets' options, F_FULLFSYNC) stays Linux's.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType

CHANGES = {
    "ringd.host.credentials": ("103 if MACOS else 107", "103"),
    "ringd.host.memory": ('SEALED_MEMORY = sys.platform == "linux"', "SEALED_MEMORY = False"),
    "ringd.host.paths": ('MACOS = sys.platform == "darwin"', "MACOS = True"),
    "ringd.host.permission": ('MACOS = sys.platform == "darwin"', "MACOS = True"),
    "ringd.net.oserrors": ('DARWIN = sys.platform == "darwin"', "DARWIN = True"),
}


class Loader(SourceFileLoader):
    """Reads a module with its change, past what was compiled before."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the changed code."""
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        old, new = CHANGES[fullname]
        if source.count(old) != 1:
            raise ImportError(f"{path}: {old!r} is not there once")
        return compile(source.replace(old, new), path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the modules that are changed."""

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a loader of ours."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in CHANGES else None
        if spec is not None and spec.origin is not None:
            spec.loader = Loader(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, Finder())
