"""The decoded cache: hit, invalidation, damage, two writers, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import normlab.data
from normlab.data import _cache, _decode
from normlab.errors import DataError
from tests.data.makers import encoded, images, write_folder


class Calls(list):
    """A progress callback that remembers."""

    def __call__(self, done: int, total: int, text: str) -> None:
        self.append((done, total, text))


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "the cache").iterdir())


def test_the_second_load_decodes_nothing(root, load, tmp_path):
    write_folder(root, each=300)
    first, second = Calls(), Calls()
    made, found = load(root, progress=first), load(root, progress=second)
    assert second == []
    assert made.hash == found.hash
    assert np.array_equal(made.channel_mean, found.channel_mean)
    assert np.array_equal(made.train.images, found.train.images)
    assert np.array_equal(made.test.labels, found.test.labels)
    for text in ("checking images", "decoding images"):
        steps = [(done, total) for done, total, own in first if own == text]
        assert steps[-1] == (600, 600)
        assert steps == sorted(steps)
        assert len(steps) >= 3
    assert len(entries(tmp_path)) == 1


def test_images_cannot_be_written_to_by_accident(root, load):
    write_folder(root)
    for data in (load(root), load("digits")):
        with pytest.raises(ValueError, match="read-only"):
            data.train.images[0] = 0


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "cat" / "new.png").write_bytes(encoded(images(1, seed=9)[0])),
        lambda root: (root / "cat" / "000.png").unlink(),
        lambda root: (root / "cat" / "000.png").rename(root / "dog" / "moved.png"),
        lambda root: (root / "cat").rename(root / "lynx"),
        lambda root: (root / "cat" / "000.png").write_bytes(encoded(images(1, seed=9)[0])),
    ],
)
def test_a_changed_folder_is_decoded_again(root, load, change):
    write_folder(root, each=20)
    before = load(root)
    change(root)
    after = load(root)
    assert (before.hash, before.class_names) != (after.hash, after.class_names)


def test_a_change_that_keeps_size_and_modification_time_is_noticed(tmp_path, load):
    path = tmp_path / "a.npz"
    x, y = images(20), np.arange(20) % 2
    np.savez(path, x_train=x, y_train=y)
    before, times = load(path), path.stat()
    np.savez(path, x_train=255 - x, y_train=y)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert load(path).hash != before.hash


def test_the_same_holds_for_one_image_of_a_folder(root, load):
    write_folder(root)
    path = root / "cat" / "plain.bmp"
    path.write_bytes(encoded(images(1, seed=8)[0], "BMP"))
    before, times = load(root), path.stat()
    path.write_bytes(encoded(images(1, seed=9)[0], "BMP"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert load(root).hash != before.hash


def test_image_size_and_seed_have_entries_of_their_own(root, load, tmp_path):
    write_folder(root, each=20)
    hashes = {load(root, **asked).hash for asked in ({}, {"image_size": 4}, {"image_size": 5}, {"seed": 3})}
    assert len(hashes) == len(entries(tmp_path)) == 4


def test_the_digest_covers_pixels_labels_and_split(tmp_path, load):
    x, y = images(40), np.arange(40) % 2
    base = {
        "x_train": x[:20],
        "y_train": y[:20],
        "x_val": x[20:30],
        "y_val": y[20:30],
        "x_test": x[30:],
        "y_test": y[30:],
    }
    pixel = x[30:].copy()
    pixel[-1, -1, -1, -1] ^= 1
    variants = [
        base,
        base | {"x_test": pixel},
        base | {"y_val": 1 - base["y_val"]},
        base | {"x_val": base["x_test"], "x_test": base["x_val"]},
        base | {"x_train": x[:21], "y_train": y[:21], "x_val": x[21:30], "y_val": y[21:30]},
    ]
    hashes = []
    for i, fields in enumerate([*variants, base]):
        np.savez(tmp_path / f"{i}.npz", **fields)
        hashes.append(load(tmp_path / f"{i}.npz").hash)
    assert len(set(hashes)) == len(variants)
    assert hashes[0] == hashes[-1]


def test_the_default_place(root, monkeypatch, tmp_path):
    write_folder(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    normlab.data.load(root)
    assert list((tmp_path / "xdg" / "normlab").glob("photos-*/entry.json"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    normlab.data.load(root)
    assert list((tmp_path / "home" / ".cache" / "normlab").glob("photos-*/entry.json"))


def truncate(entry: Path) -> None:
    with (entry / "train.npy").open("r+b") as file:
        file.truncate(500)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda entry: (entry / "entry.json").write_text("{"),
        lambda entry: (entry / "entry.json").write_text("[]"),
        lambda entry: (entry / "val-labels.npy").unlink(),
        lambda entry: (entry / "test.npy").write_bytes(b""),
    ],
)
def test_a_damaged_entry_is_made_again(root, load, tmp_path, damage):
    write_folder(root)
    before = load(root)
    (entry,) = entries(tmp_path)
    damage(entry)
    assert load(root).hash == before.hash
    assert entries(tmp_path) == [entry]
    calls = Calls()
    load(root, progress=calls)
    assert calls == []


# One changed byte was used, under the old hash.
def test_every_changed_byte_is_noticed_or_changes_nothing(root, load, tmp_path):
    write_folder(root)
    before = load(root)
    (entry,) = entries(tmp_path)
    rng = np.random.default_rng(0)
    for path in sorted(entry.iterdir()):
        whole = path.read_bytes()
        for at in (0, *rng.integers(0, len(whole), 2).tolist(), len(whole) - 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
            found = load(root)
            assert (found.hash, found.class_names) == (before.hash, before.class_names)
            assert found.channel_mean == pytest.approx(before.channel_mean)
            for split in ("train", "val", "test"):
                assert np.array_equal(getattr(found, split).images, getattr(before, split).images), (path.name, at)
                assert np.array_equal(getattr(found, split).labels, getattr(before, split).labels), (path.name, at)


def test_a_large_entry_is_read_whole_once_a_day_and_after_a_change(root, load, tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "_SMALL", 0)
    read = Calls()
    digest = _cache.digest
    monkeypatch.setattr(_cache, "digest", lambda splits: read(0, 0, "") or digest(splits))
    write_folder(root)
    before = load(root)
    assert len(read) == 1
    load(root)
    assert len(read) == 1
    now = time.time()
    for later in (_cache._CHECK_EVERY + 1, -5):  # a day later, or a clock that was set back
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        load(root)
    monkeypatch.setattr(time, "time", lambda: now - 4)
    load(root)
    assert len(read) == 3
    (entry,) = entries(tmp_path)
    path = entry / "train.npy"
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = load(root)
    assert digest(_cache.read_splits(entry)) == found.hash == before.hash


def test_a_failure_leaves_nothing_behind(root, load, tmp_path):
    write_folder(root)
    (root / "cat" / "bad.png").write_bytes(encoded(images(1)[0])[:90])

    def interrupt(done: int, total: int, text: str) -> None:
        if text == "decoding images":
            raise KeyboardInterrupt

    with pytest.raises(DataError):
        load(root)
    with pytest.raises(KeyboardInterrupt):
        load(root, skip_bad=True, progress=interrupt)
    assert entries(tmp_path) == []


def test_what_a_killed_writer_left_is_swept_after_a_day(root, load, tmp_path):
    write_folder(root)
    old, new = (tmp_path / "the cache" / name for name in (".old.part", ".new.part"))
    for scratch in (old, new):
        scratch.mkdir(parents=True)
        (scratch / "train.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    load(root)
    assert not old.exists()
    assert new.exists()


def test_two_writers_at_once_agree(root, load, tmp_path):
    write_folder(root, each=50)
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(lambda _: load(root).hash, range(4)))
    assert len(set(hashes)) == 1
    assert len(entries(tmp_path)) == 1


def test_two_processes_at_once_agree(root, tmp_path):
    write_folder(root, each=50)
    code = "import sys, normlab.data; print(normlab.data.load(sys.argv[1], cache_dir=sys.argv[2]).hash)"
    command = [sys.executable, "-W", "error", "-c", code, str(root), str(tmp_path / "the cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=600)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert len(entries(tmp_path)) == 1


def test_no_room_is_said_before_decoding(root, load, tmp_path, monkeypatch):
    write_folder(root, size=(300, 300))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    calls = Calls()
    with pytest.raises(DataError, match=r"no room .* 5 MiB needed, 1 MiB free; .*smaller image size"):
        load(root, progress=calls)
    assert not [text for _, _, text in calls if text == "decoding images"]
    assert entries(tmp_path) == []


def test_a_disk_that_fills_up_while_decoding(root, tmp_path):
    """With a limit on the size of a file in place of a full disk: the write is refused in the same way."""
    write_folder(root, size=(64, 64), each=20)
    code = textwrap.dedent("""
        import resource, sys
        import normlab.data
        from normlab.errors import DataError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            normlab.data.load(sys.argv[1], cache_dir=sys.argv[2])
        except DataError as error:
            print(error)
    """)
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "the cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "cannot write the decoded images to the cache folder" in done.stdout
    assert "free some space" in done.stdout
    assert entries(tmp_path) == []


def test_a_cache_folder_that_cannot_be_made(root, tmp_path):
    write_folder(root)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot write .*choose another folder \(cache_dir"):
        normlab.data.load(root, cache_dir=tmp_path / "file" / "below")


def test_large_photographs_are_decoded_in_threads_with_the_same_result(root, load, tmp_path, monkeypatch):
    write_folder(root, size=(120, 160))
    threaded = load(root)
    monkeypatch.setattr(_decode, "_WORTH_A_THREAD", 1 << 40)
    assert normlab.data.load(root, cache_dir=tmp_path / "other").hash == threaded.hash
    assert min(path.stat().st_size for path in root.rglob("*.png")) > 16 << 10


def test_the_entry_is_plain_json_and_arrays(root, load, tmp_path):
    write_folder(root)
    data = load(root)
    (entry,) = entries(tmp_path)
    assert json.loads((entry / "entry.json").read_text())["hash"] == data.hash
    assert np.load(entry / "train.npy").shape == data.train.images.shape
