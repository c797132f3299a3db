"""What hatchling does before it packs a wheel: takes along compiled kernels, of the folder that NORMLAB_WHEEL names."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# the libraries need nothing of the C library but malloc, free and a few more, of no certain version
TAG = "py3-none-manylinux_2_17_x86_64"


class Objects(BuildHookInterface[Any]):
    """A wheel for a platform where there are compiled kernels, else one for all."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files, and the platform that they are for. Raises RuntimeError if they are of other sources."""
        folder = os.environ.get("NORMLAB_WHEEL", "")
        libraries = sorted((Path(self.root) / folder).glob("*.so")) if folder and version != "editable" else []
        if not libraries:
            return
        kernels = Path(self.root) / "normlab" / "kernels"
        sources = runpy.run_path(str(kernels / "runtime" / "sources.py"))
        contents = libraries[0].parent / "objects.json"
        if sources["digest"](sources["sources_of"](kernels / "cpu")) not in contents.read_text():
            raise RuntimeError(f"the kernels in {folder} are of other sources; run python -m wheels.objects again")
        build_data["pure_python"], build_data["tag"] = False, TAG
        for path in (*libraries, contents):
            build_data["force_include"][str(path)] = f"normlab/kernels/objects/{path.name}"
