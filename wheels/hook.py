"""What hatchling does before it packs a wheel: takes along compiled kernels, of the folder that NORMLAB_WHEEL names."""

from __future__ import annotations

import json
import os
import platform
import runpy
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# the libraries need nothing of the C library but malloc, free and a few more, of no certain version
TAG = "py3-none-manylinux_2_17_x86_64"


class Objects(BuildHookInterface[Any]):
    """A wheel for a platform where there are compiled kernels, else one for all."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files, and the platform that they are for. Raises RuntimeError if some are missing or stale."""
        folder = os.environ.get("NORMLAB_WHEEL", "")
        if not folder or version == "editable" or (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return
        listed = Path(self.root) / folder / "objects.json"
        if not listed.is_file():
            raise RuntimeError(f"there are no compiled kernels in {folder}; run python -m wheels.objects first")
        contents = json.loads(listed.read_text())
        kernels = Path(self.root) / "normlab" / "kernels"
        sources = runpy.run_path(str(kernels / "runtime" / "sources.py"))
        if sources["digest"](sources["sources_of"](kernels / "cpu")) != contents["sources"]:
            raise RuntimeError(f"the kernels in {folder} are of other sources; run python -m wheels.objects again")
        build_data["pure_python"], build_data["tag"] = False, TAG
        for name in ("objects.json", *(f"{library}.so" for library in contents["libraries"])):
            build_data["force_include"][str(listed.with_name(name))] = f"normlab/kernels/objects/{name}"
