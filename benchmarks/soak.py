"""Ten minutes of bad luck: studies whose processes are killed, whose disk is full and whose clock jumps, two at a time.

    python -m benchmarks.soak --seconds 600

Every study must end as one that nobody disturbed: each cell done, each epoch once, the same weights to the last bit, a
store and checkpoints that are whole, and no traceback anywhere. Prints what was done to how many; exits with 1 at the
first difference, and leaves the directory to look at.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from normlab.errors import DataError
from normlab.study.keeping.store import Store
from normlab.study.keeping.verify import verify

SMALL = (
    "digits", "--model", "resnet8:width=4", "--limit-train", "60", "--limit-eval", "20", "--batch-size", "8",
    "--norms", "bn,none", "--seeds", "2", "--epochs", "4", "--lr", "0.01", "--jobs", "2", "--threads", "1",
    "--no-report",
)  # fmt: skip
EXPECTED = (0, 1, 4, 6, 130)  # exit codes of a command that something was done to; negative ones are our signals
LONGEST = 600.0  # seconds for a study that nobody disturbs
# what `clock` does to a process: its time jumps by years whenever it is asked
CLOCK = "import random, time\nreal = time.time\ntime.time = lambda: real() + random.choice((-1e8, 0, 1e8))\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="normlab-soak-"))
    soak = Soak(root, random.Random(arguments.seed))
    try:
        studies = soak.run(arguments.seconds)
    except Difference as e:
        print(f"{e}; see {root}", file=sys.stderr)
        return 1
    finally:
        soak.end()
    said = ", ".join(f"{count} x {what}" for what, count in sorted(soak.done.items()))
    print(f"{studies} studies ended as if nothing had been done to them: {said}")
    return 0


class Difference(Exception):
    """A study is not what it would be if nothing had been done to it."""


class Soak:
    """Studies in `root`, and what `luck` does to them."""

    def __init__(self, root: Path, luck: random.Random) -> None:
        self.root, self.luck = root, luck
        self.done: Counter[str] = Counter()
        self.wanted: dict[str, str] = {}
        self.drivers: list[subprocess.Popen[bytes]] = []
        (root / "clock").mkdir()
        (root / "clock" / "sitecustomize.py").write_text(CLOCK)

    def run(self, seconds: float) -> int:
        """Disturb study after study until the time is up; returns how many there were."""
        undisturbed = self.root / "undisturbed"
        self.finish(undisturbed)
        self.wanted = weights(undisturbed)
        deadline, studies = time.monotonic() + seconds, 0
        while time.monotonic() < deadline or not studies:
            studies += 1
            directory = self.root / f"study-{studies}"
            for _ in range(self.luck.randrange(4, 12)):
                self.strike(directory)
                time.sleep(self.luck.uniform(0, 8))
            self.end()
            self.finish(directory)
            self.check(directory)
        return studies

    def strike(self, directory: Path) -> None:
        """Start a driver, or do something to one."""
        self.drivers = [d for d in self.drivers if not self.over(d)]
        if len(self.drivers) < 2 and (not self.drivers or self.luck.random() < 0.5):
            how = self.luck.choice(("plain", "plain", "full disk", "clock"))
            self.done[f"driver ({how})"] += 1
            self.drivers.append(self.start(directory, how))
            return
        driver = self.luck.choice(self.drivers)
        what = self.luck.choice(("SIGKILL", "SIGINT", "SIGTERM", "worker"))
        workers = children(driver.pid)
        self.done["killed worker" if what == "worker" else what] += 1
        try:
            if what == "worker":
                os.kill(self.luck.choice(workers or [driver.pid]), signal.SIGKILL)
            else:
                driver.send_signal(getattr(signal, what))
        except ProcessLookupError:
            pass

    def start(self, directory: Path, how: str = "plain") -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if how == "clock":
            paths = filter(None, [str(self.root / "clock"), environment.get("PYTHONPATH")])
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        limit = self.luck.randrange(1, 120) * 1024
        command = [sys.executable, "-m", "normlab", "compare", *SMALL, "--out", str(directory)]
        with (self.root / f"{directory.name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=(lambda: full_disk(limit)) if how == "full disk" else None,
            )

    def over(self, driver: subprocess.Popen[bytes]) -> bool:
        code = driver.poll()
        if code is not None and code >= 0 and code not in EXPECTED:
            raise Difference(f"a command ended with code {code}")
        return code is not None

    def finish(self, directory: Path) -> None:
        """Let a study run to its end."""
        if (code := self.start(directory).wait(LONGEST)) != 0:
            raise Difference(f"{directory.name}: the last command ended with code {code}")

    def check(self, directory: Path) -> None:
        """Raise Difference where a study is not like the undisturbed one."""
        if "Traceback" in (self.root / f"{directory.name}.log").read_text(errors="replace"):
            raise Difference(f"{directory.name}: a traceback")
        with Store(directory, readonly=True) as store:
            for cell in store.cells():
                epochs = [record["epoch"] for record in store.epochs(cell.id)]
                if (cell.status, epochs) != ("done", list(range(1, cell.cell.epochs + 1))):
                    raise Difference(f"{directory.name}: {cell.cell.label()} is {cell.status} with epochs {epochs}")
        if weights(directory) != self.wanted:
            raise Difference(f"{directory.name}: other weights")
        try:
            list(verify(directory))
        except DataError as e:
            raise Difference(f"{directory.name}: {e}") from e

    def end(self) -> None:
        """End every driver."""
        for driver in self.drivers:
            driver.kill()
            driver.wait()
        self.drivers.clear()


def full_disk(limit: int) -> None:
    """No file of this process may grow beyond so many bytes: writing it is refused, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def weights(directory: Path) -> dict[str, str]:
    """Digests of the trained weights, by cell."""
    found = sorted(directory.glob("checkpoints/*/final.safetensors"))
    return {path.parent.name: digest(path) for path in found}


def digest(path: Path) -> str:
    from safetensors.numpy import load_file

    sha = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        sha.update(name.encode() + tensor.tobytes())
    return sha.hexdigest()


def children(pid: int) -> list[int]:
    """The processes that a process started, where the system says so."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main())
