"""The process that a target runs in: it loads one target, calls it as it is asked, and sends back what it returned.

Standard output and error belong to the target; requests and replies have pipes of their own. The arrays that come
back are judged elsewhere. Here run those checks alone that need the target itself: of its engineering and numerics.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from dataclasses import asdict
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from normlab.check import wire
from normlab.errors import targets


class Server:
    """The target, its subjects by number, and what it changed of the process."""

    def __init__(self, job: dict[str, Any]) -> None:
        from normlab.check.process import SideEffects

        self.job, self.effects = job, SideEffects()
        self.subjects: dict[int, Any] = {}
        self.setup: Any = None
        self.count = 0

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request gives, or what it raised; with the habits that the target was found to have."""
        from normlab.check.subjects import TargetFailure, Unsupported
        from normlab.errors import NormlabError

        for number in request.get("drop", ()):
            self.subjects.pop(number, None)
        for name, value in request.get("habits", {}).items():  # one object for all subjects
            setattr(self.subjects[0].habits, name, value)
        try:
            with self.effects.watched(seeds=request["op"] == "load"):
                return {"value": getattr(self, f"do_{request['op']}")(**request["given"]), **self._habits_as_dict()}
        except NormlabError as e:
            return {"raised": "usage", "said": str(e), "code": e.exit_code}
        except (TargetFailure, Unsupported) as e:
            original = getattr(e, "original", None)
            name = None if original is None else type(original).__name__
            return {"raised": type(e).__name__, "said": str(e), "original": name, **self._habits_as_dict()}
        except Exception as e:
            return {"raised": type(e).__name__, "said": str(e), "original": None, **self._habits_as_dict()}

    def _habits_as_dict(self) -> dict[str, Any]:
        return {"habits": asdict(self.subjects[0].habits)} if 0 in self.subjects else {}

    def do_load(self) -> dict[str, Any]:
        from normlab.check.subjects import load, subject_of

        self.thing, self.backward, self.name = load(self.job["target"])
        self.subjects[0] = subject_of(self.thing, self.name, self.backward, self.job["kind"])
        return self._describe_subject(0)

    def do_fresh(self, of: int, changes: dict[str, Any]) -> dict[str, Any]:
        made = self.subjects[of].fresh(**changes)
        self.count += 1
        self.subjects[self.count] = made
        return self._describe_subject(self.count)

    def _describe_subject(self, number: int) -> dict[str, Any]:
        subject = self.subjects[number]
        found = {name: getattr(subject, name) for name in ("form", "name", "settable", "channel_axis")}
        return {"number": number, "channels": subject.options.channels, "groups": subject.options.groups, **found}

    def do_get(self, of: int, name: str) -> Any:
        return getattr(self.subjects[of], name)

    def do_set(self, of: int, name: str, value: Any) -> None:
        setattr(self.subjects[of], name, value)

    def do_call(self, of: int, name: str, given: tuple[Any, ...]) -> Any:
        return getattr(self.subjects[of], name)(*given)

    def do_check(self, name: str) -> dict[str, Any]:
        """One check that needs the target itself, on a subject of its own."""
        from normlab.check import checks  # noqa: F401  (importing enrols the checks)
        from normlab.check.dialect import prepare
        from normlab.check.engine import guarded_check
        from normlab.check.subjects import subject_of

        if self.setup is None:
            subject = subject_of(self.thing, self.name, self.backward, self.job["kind"])
            self.setup = prepare(subject, self.job["kind"], self.job["dialect"], self.job["quick"])
            self.setup.elements, self.setup.strict = self.job["elements"], self.job["strict"]
        return json.loads(json.dumps(asdict(guarded_check(name, self.setup)), default=str))

    def do_effects(self) -> list[str]:
        return self.effects.changed


def main(job: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    """Serve requests until they end."""
    if job["target"].startswith("keras") or ":" in job["target"]:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    if needs_torch(job["target"]):
        import torch  # noqa: F401  (its import takes seconds that are not the target's)

    server = Server(job)
    replies.write(wire.pack("ready"))
    replies.flush()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        while (frame := wire.read(requests)) is not None:
            reply = server.reply(wire.unpack(frame))
            try:
                packed = wire.pack(reply)
            except TypeError as e:
                said = f"returned what is no array: {e}"
                packed = wire.pack({"raised": "TargetFailure", "said": said, "original": None})
            replies.write(packed)
            replies.flush()


def needs_torch(target: str) -> bool:
    """Whether a target's file imports torch, or Keras, which computes with it; True where the file is not found."""
    place, _ = targets.split(target)
    if place == "onnx":
        return False
    path = Path(place) if targets.is_file(place) else _file_of(place)
    try:
        text = "import torch" if path is None else path.read_text(errors="replace")
    except OSError:
        return False  # what is not there is not loaded either
    return re.search(r"^\s*(import|from)\b.*\b(torch|keras)", text, re.MULTILINE) is not None


def _file_of(module: str) -> Path | None:
    """The file that a dotted name would be imported from; imports nothing."""
    folders: Any = [str(Path.cwd()), *sys.path]
    origin = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, folders)
        if spec is None or spec.origin is None:
            return None
        folders, origin = spec.submodule_search_locations or [], spec.origin
    return None if origin is None else Path(origin)


def _duplicate(descriptor: int, mode: str) -> Any:
    """A pipe under another number, out of the way of what the target prints."""
    moved = os.dup(descriptor)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    return os.fdopen(moved, mode)


if __name__ == "__main__":
    sys.stdout.flush()
    main(json.loads(sys.argv[1]), _duplicate(0, "rb"), _duplicate(1, "wb"))
    os._exit(0)  # threads and exit handlers of the target do not get to hold us
