"""Puts the sanitizers' build of `sidewinder._native` in the place of the installed one.

Python imports this by itself where the folder is in PYTHONPATH, and so do ranks; `make sanitize`
starts the tests so.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "sanitize"


class Sanitized(MetaPathFinder):
    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != "sidewinder._native":
            return None
        (module,) = BUILD.glob("_native*.so")
        return spec_from_file_location(fullname, module)


sys.meta_path.insert(0, Sanitized())
