"""A zip or a tar of an image folder, and members that an archive must not have."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from normlab.errors import DataError
from tests.data.makers import write_folder


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "xztar"])
def test_an_archive_gives_the_same_images_as_the_folder(root, load, tmp_path, kind):
    write_folder(root / "train", each=3)
    write_folder(root / "val", each=2, seed=1)
    write_folder(root / "test", each=2, seed=2)
    path = shutil.make_archive(str(tmp_path / "packed"), kind, root)
    packed, plain = load(path), load(root)
    assert packed.name == "packed"
    assert packed.class_names == plain.class_names
    assert sorted(image.tobytes() for image in packed.train.images) == sorted(
        image.tobytes() for image in plain.train.images
    )
    if kind == "zip":
        assert packed.hash == plain.hash
    assert not [path for path in tmp_path.rglob("*.png") if root not in path.parents]  # nothing was unpacked


def test_a_zip_with_members_that_lead_elsewhere_is_refused(root, load, tmp_path):
    write_folder(root)
    path = shutil.make_archive(str(tmp_path / "evil"), "zip", root)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../out.png", "cat/../../out.png", "/etc/x.png", "C:\\x.png", "cat\\..\\..\\y.png"):
            archive.writestr(name, b"")
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="6 of its members") as caught:
        load(path)
    message = str(caught.value)
    assert message.count("leads out of the archive") == 3
    assert message.count("is an absolute path") == 2
    assert "'cat/link.png' is a link" in message
    assert "'../out.png'" in message
    assert not list(tmp_path.parent.rglob("out.png"))


def test_a_tar_with_links_devices_and_paths_that_lead_elsewhere_is_refused(root, load, tmp_path):
    write_folder(root)
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(root, ".")
        for name, kind in (
            ("../out.png", tarfile.REGTYPE),
            ("/abs.png", tarfile.REGTYPE),
            ("cat/soft.png", tarfile.SYMTYPE),
            ("cat/hard.png", tarfile.LNKTYPE),
            ("cat/fifo.png", tarfile.FIFOTYPE),
            ("cat/dev.png", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match="6 of its members") as caught:
        load(path)
    assert str(caught.value).count("is a link") == 2
    assert str(caught.value).count("is a device or a pipe") == 2


def test_damaged_archives(root, load, tmp_path):
    write_folder(root)
    for kind in ("zip", "gztar", "tar"):
        path = shutil.make_archive(str(tmp_path / kind), kind, root)
        with open(path, "r+b") as file:
            size = file.seek(0, 2)
            if kind == "zip":
                file.seek(size // 3)
                file.write(bytes(size // 3))
            else:
                file.truncate(size // 2)
        with pytest.raises(DataError, match="cannot"):
            load(path)


def test_one_damaged_member_of_a_zip_is_named(root, load, tmp_path):
    write_folder(root)
    path = shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("cat/004.png").header_offset + 60
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 20)
    with pytest.raises(DataError, match=r"1 of 20 images cannot be used\n  'cat/004.png': "):
        load(path)
    assert "'cat/004.png'" in load(path, skip_bad=True).notes[0]


def test_an_encrypted_member_is_named(root, load, tmp_path):
    write_folder(root)
    path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is encrypted"):
        load(path)
