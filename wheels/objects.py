"""Compile kernels for a wheel: `python -m wheels.objects [--sets x86-64-v3] [--out build/objects]`.

Numba compiles each for the processors of an instruction set, and the C compiler links them into one library for each
set (`normlab.kernels.runtime.objects`), which needs neither Numba nor a certain Python. What has been made of the same
sources is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from normlab.kernels.runtime import sources
from normlab.kernels.runtime.needed import Need
from normlab.kernels.runtime.objects import CONTENTS, SETS
from normlab.kernels.runtime.system import COMPILE_ALONE

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "objects"
_RUNTIME_C = Path(__file__).parent / "runtime.c"
_CPU, _RUNTIME = "normlab.kernels.cpu", "normlab.kernels.runtime"
_FLAGS = ["-shared", "-fPIC", "-O2", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fvisibility=hidden", "-s"]


def kernels(dtype: str = "float32") -> Iterator[Need]:
    """All that the layers call for this dtype, which is no half."""
    from normlab.kernels.cpu._called import ROWS
    from normlab.kernels.cpu._forms import NO_ACT, OTHER_ACT, RELU

    either = (False, True)
    for last in either:
        yield _need("_kernels", "measure", dtype, last)
        yield _need("_kernels", "dot", dtype, last, False)
        for add in either:
            yield _need("_kernels", "pull", dtype, last, add)
            for act in (NO_ACT, RELU, OTHER_ACT):
                yield _need("_kernels", "apply", dtype, last, add, act)
        for in_place, linear in ((False, False), (False, True), (True, False)):
            yield _need("_kernels", "combine", dtype, last, False, in_place, linear)
    for backward, other in product(either, either):
        yield _need("_work", "work", backward, other)
        yield _need("_passes", "direction", backward, other)
        yield _need("_position_work", "work", dtype, other, backward)
    for backward in either:
        yield _need("_position_work", "direction", backward, int(dtype[-2:]) // 8)
    for name, slope in product(ROWS, either):
        yield _need("_called", "address", name, dtype, slope)
    yield _need("_machine", "perform")
    yield Need(f"{_RUNTIME}.protocol", "wait")
    yield Need(f"{_RUNTIME}.protocol", "join")


def _need(module: str, name: str, *arguments: Any) -> Need:
    return Need(f"{_CPU}.{module}", name, arguments)


def build(out: Path, sets: Iterable[str] = SETS, needed: Iterable[Need] | None = None) -> None:
    """Write a library for each of the sets, with all kernels or these, and what they were made from."""
    if shutil.which("cc") is None:
        raise SystemExit("wheels.objects: there is no C compiler (cc) to link the kernels with; install one")
    out.mkdir(parents=True, exist_ok=True)
    contents: dict[str, Any] = {**_made_from(), "libraries": {}}
    for name in sets:
        library = out / f"{name}.so"
        with tempfile.TemporaryDirectory() as folder:
            # an instruction set is chosen when Numba is imported
            environment = {**os.environ, **COMPILE_ALONE, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
            environment |= {"NUMBA_CACHE_DIR": folder, "NORMLAB_OBJECTS": ""}
            command = [sys.executable, "-m", "wheels.objects", "--compile", name, "--out", folder]
            subprocess.run(
                command, cwd=ROOT, env=environment, check=True, text=True, input=json.dumps(list(needed or kernels()))
            )
            objects = sorted(map(str, Path(folder).glob("*.o")))
            subprocess.run(["cc", *_FLAGS, str(_RUNTIME_C), *objects, "-o", library], check=True)
        contents["libraries"][name] = _digest(library)
    (out / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n")


def _is_made(out: Path, sets: list[str]) -> bool:
    try:
        contents = json.loads((out / CONTENTS).read_text())
    except (OSError, ValueError):
        return False
    there = [name for name, digest in contents["libraries"].items() if _digest(out / f"{name}.so") == digest]
    return set(sets) <= set(there) and _made_from().items() <= contents.items()


def _made_from() -> dict[str, str]:
    """What is compiled, and with what, as digests."""
    return {
        "sources": sources.digest(sources.sources_of(sources.KERNELS / "cpu")),
        "tools": f"{sources.digest([_RUNTIME_C, Path(__file__)])} numba {version('numba')}",
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _compile(needed: list[Need], set_: str, folder: Path) -> None:
    """Write the object file of each kernel, whose only name to others is its symbol."""
    import llvmlite.binding as llvm
    from numba import config

    from normlab.kernels.runtime import compiling

    assert (set_, "") == (config.CPU_NAME, config.CPU_FEATURES)
    triple = llvm.get_process_triple()
    options = {"cpu": set_, "features": "", "opt": 3, "reloc": "pic", "codemodel": "default"}
    machine = llvm.Target.from_triple(triple).create_target_machine(**options)
    for number, need in enumerate(needed):
        started = perf_counter()
        getattr(import_module(need.module), need.name)(*need.arguments)
        made = compiling.alive[-1]
        module = llvm.parse_bitcode(made._library._final_module.as_bitcode())
        named = [function for function in module.functions if function.name == made.native_name]
        if not named or named[0].is_declaration:  # Numba loaded it from its disk: it is another kernel's, too
            raise RuntimeError(f"{need.symbol} has been compiled before, under another name")
        for value in (*module.functions, *module.global_variables):
            if value.name == made.native_name:
                value.name = need.symbol
            elif not value.is_declaration:
                value.linkage = "internal"
        passes = llvm.create_new_module_pass_manager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
        (folder / f"{number:03d}.o").write_bytes(machine.emit_object(module))
        print(f"{set_} {number + 1}/{len(needed)} {perf_counter() - started:5.1f} s {need.symbol}", flush=True)


def main(args: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m wheels.objects", description="compile kernels for a wheel")
    parser.add_argument("--sets", default=",".join(SETS), help="instruction sets, with commas between them")
    parser.add_argument("--out", type=Path, default=OUT, help="a folder")
    parser.add_argument("--compile", metavar="SET", help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    sets = given.sets.split(",")
    if unknown := set(sets) - set(SETS):
        parser.error(f"--sets: {', '.join(sorted(unknown))} is not known; expected {', '.join(SETS)}")
    if given.compile:
        _compile([Need(m, n, tuple(a)) for m, n, a in json.load(sys.stdin)], given.compile, given.out)
    elif (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print(
            "no compiled kernels for this platform: the wheel has the sources, and Numba compiles them", file=sys.stderr
        )
    elif not _is_made(given.out, sets):
        build(given.out, sets)


if __name__ == "__main__":
    main()
