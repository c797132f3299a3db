"""Image folders: layouts, colours, sizes, orientation, and every kind of image that cannot be used."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from normlab.data import Dataset
from normlab.errors import DataError, UsageError
from tests.data.makers import encoded, images, write_folder


def rows_of(dataset: Dataset) -> dict[bytes, str]:
    """Class by pixels, over all splits."""
    return {
        image.tobytes(): dataset.class_names[label]
        for split in (dataset.train, dataset.val, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    }


def test_a_folder_of_classes_is_split_class_by_class(root, load):
    written = write_folder(root, ("dog", "cat"), each=20)
    data = load(root)
    assert data.name == "photos"
    assert data.class_names == ("cat", "dog")
    for split, each in ((data.train, 14), (data.val, 3), (data.test, 3)):
        assert np.bincount(split.labels).tolist() == [each, each]
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert isinstance(split.images, np.memmap)
    assert rows_of(data) == {pixels.tobytes(): name.split("/")[0] for name, pixels in written.items()}


def test_another_seed_splits_otherwise_and_the_same_seed_the_same(root, load):
    write_folder(root, each=20)
    first, again, other = load(root, seed=0), load(root, seed=0), load(root, seed=1)
    assert first.hash == again.hash != other.hash
    assert rows_of(first) == rows_of(other)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
def test_given_splits_are_kept(root, load, val):
    expected = {}
    for k, split in enumerate(("train", val, "test")):
        expected[split] = write_folder(root / split, each=3 + k, seed=k)
    data = load(root)
    for split, own in (("train", data.train), (val, data.val), ("test", data.test)):
        assert np.array_equal(own.images, np.stack(list(expected[split].values())))
    assert load(root, seed=5).hash == data.hash


def test_validation_comes_out_of_training_when_only_the_test_split_is_given(root, load):
    write_folder(root / "train", each=10)
    write_folder(root / "test", each=4, seed=1)
    data = load(root)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 8)


def test_a_class_may_be_called_train(root, load):
    write_folder(root, ("bus", "train"))
    assert load(root).class_names == ("bus", "train")


def test_a_folder_that_wraps_the_classes_and_folders_inside_a_class(root, load):
    write_folder(root / "wrapped", ("a", "b"), each=5)
    write_folder(root / "wrapped" / "a", ("more",), each=5, seed=3)
    data = load(root)
    assert data.class_names == ("a", "b")
    assert len(data.train) + len(data.val) + len(data.test) == 15


def test_clutter_is_ignored_and_other_files_are_mentioned(root, load):
    write_folder(root)
    for name in (".DS_Store", "cat/._000.png", "cat/Thumbs.db", "__MACOSX/cat/000.png", ".git/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"clutter")
    (root / "README.txt").write_text("words")
    data = load(root)
    assert data.class_names == ("cat", "dog")
    assert len(data.notes) == 1
    assert "'README.txt'" in data.notes[0]


def test_hostile_class_names_stay_data(root, load):
    names = ("<script>\x1b[31m", "caf\udce9", "naïve")
    write_folder(root, names, each=4)
    data = load(root)
    assert data.class_names == ("<script>\x1b[31m", "caf\\xe9", "naïve")
    assert load(root).class_names == data.class_names  # also out of the cache
    "".join(data.class_names).encode("utf-8")


def test_gray_images_keep_one_channel_and_one_colour_image_makes_all_rgb(root, load):
    write_folder(root, channels=1)
    assert load(root).channels == 1
    colour = images(1, seed=99)[0]
    (root / "cat" / "colour.png").write_bytes(encoded(colour))
    data = load(root)
    assert data.channels == 3
    assert colour.tobytes() in rows_of(data)


def test_unusual_pixel_types(root, load):
    write_folder(root)
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray((255 - gray).astype(np.uint16) * 256 + 77).save(root / "cat" / "deep.png")
    Image.fromarray(gray).convert("1").save(root / "cat" / "bits.png")
    Image.fromarray(gray).convert("RGBA").save(root / "dog" / "alpha.png")
    Image.fromarray(gray).convert("CMYK").save(root / "dog" / "cmyk.tiff")
    palette = Image.fromarray(gray).convert("P")
    palette.save(root / "dog" / "palette.png", transparency=bytes([7, 200]))
    palette.save(root / "dog" / "palette.gif")
    Image.fromarray(gray.astype(np.float32)).save(root / "cat" / "float.tiff")
    with pytest.raises(DataError, match=r"1 of 27 images.*\n.*float.tiff': 32-bit pixels"):
        load(root)
    found = rows_of(load(root, skip_bad=True))
    assert np.stack([255 - gray] * 3).tobytes() in found  # 16 bits are scaled, not clipped


# 12-bit pictures in 16-bit files were nearly black, without a word
@pytest.mark.parametrize(("highest", "said"), [(4095, True), (0x7FFF, True), (0x8000, False)])
def test_sixteen_bit_images_of_a_narrow_range_are_told(root, load, highest, said):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            picture = np.full((4, 4), i, np.uint16)
            picture[0, 0] = highest
            Image.fromarray(picture).save(root / name / f"{i}.png")
    notes = " ".join(load(root).notes)
    assert (f"pixels up to {highest} of 65535" in notes) == said
    assert ("16-bit" in notes) == said


def write_deep(root, low, high):
    for at, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(6):
            picture = np.full((4, 4), low + at * (high - low) // 3, np.uint16)
            picture[0, i % 4], picture[1, i % 4] = low, high
            Image.fromarray(picture).save(root / name / f"{i}.png")


def test_sixteen_bit_images_are_scaled_from_their_own_range_on_request(root, load):
    write_deep(root, 1000, 4000)
    data = load(root, full_range=True)
    assert data.levels == (1000, 4000)
    assert "16-bit" not in " ".join(data.notes)
    assert set(np.unique(data.train.images)) == {0, 85, 255}  # and 1000, 2000, 4000 were 3, 7, 15
    assert load(root, full_range=True).levels == (1000, 4000)  # as cached
    assert load(root).levels == (0, 65535)
    assert set(np.unique(load(root).train.images)) == {3, 7, 15}


# Bug: an image whose body is damaged was left out unasked, and the cache entry then said to have vanished.
def test_the_range_of_images_some_of_which_are_damaged(root, load):
    write_deep(root, 1000, 4000)
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"1 of 13 images cannot be used(?s:.)*cut\.png"):
        load(root, full_range=True)
    assert load(root, full_range=True, skip_bad=True).levels == (1000, 4000)


def test_a_single_shade_of_sixteen_bits_is_black(root, load):
    write_deep(root, 700, 700)
    assert not load(root, full_range=True).train.images.any()


def test_full_range_is_refused_where_images_have_eight_bits(root, load):
    write_folder(root)
    with pytest.raises(DataError, match=r"--full-range"):
        load(root, full_range=True)
    with pytest.raises(UsageError, match=r"full_range"):
        load("digits", full_range=True)


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_honoured(root, load, orientation, kind):
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose numbers
    upright = np.zeros((3, 16, 24), np.uint8)
    upright[:, :8, :8] = images(1, (1, 1), seed=99)[0] // 4 + 190  # one bright corner, in blocks as JPEG has them
    stored = Image.fromarray(upright.transpose(1, 2, 0))
    if undo is not None:
        stored = stored.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    write_folder(root, size=(16, 24))
    lossless = {"png": {}, "tiff": {}, "webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    stored.save(root / "cat" / f"turned.{kind}", exif=exif, **lossless[kind])
    data = load(root)
    assert data.size == (16, 24)
    found = np.concatenate([data.train.images, data.val.images, data.test.images]).astype(int)
    assert np.abs(found - upright).max((1, 2, 3)).min() <= 8


def test_one_size_is_kept_and_mixed_sizes_are_brought_to_a_square(root, load):
    write_folder(root, size=(6, 10))
    data = load(root)
    assert (data.size, data.notes) == ((6, 10), ())
    (root / "cat" / "large.jpg").write_bytes(encoded(images(1, (200, 300))[0], "JPEG"))
    data = load(root)
    assert data.size == (64, 64)
    assert "from 10 x 6 to 300 x 200" in data.notes[0]
    assert load(root, image_size=5).size == (5, 5)


def test_resizing_crops_about_the_centre(root, load):
    wide = np.zeros((3, 40, 120), np.uint8)
    wide[:, :, 40:80] = 200  # the middle square; both sides are black
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for i in range(4):
            (root / name / f"{i}.png").write_bytes(encoded(wide))
            (root / name / f"{i}.jpg").write_bytes(encoded(wide, "JPEG", quality=95))
    data = load(root, image_size=10)
    inner = data.train.images[..., 1:-1].astype(int)  # at the seam the filter reaches over it
    assert np.all(np.abs(inner - 200) <= 3)
    assert data.train.images.min() > 100


def test_a_sliver_is_cropped_before_it_is_enlarged(root, load):
    write_folder(root)
    (root / "cat" / "sliver.png").write_bytes(encoded(np.zeros((3, 1, 50_000), np.uint8)))
    assert load(root, image_size=32).size == (32, 32)


def test_every_bad_image_is_listed_and_skipping_goes_on_without_them(root, load):
    written = write_folder(root)
    bad = {
        "cat/truncated.jpg": encoded(images(1)[0], "JPEG")[:-40],
        "cat/empty.png": b"",
        "dog/words.png": b"these are words",
        "dog/half.png": encoded(images(1)[0])[:90],
        "stray.png": encoded(images(1)[0]),
    }
    for name, data in bad.items():
        (root / name).write_bytes(data)
    (root / "dog" / "nowhere.png").symlink_to(root / "no such file")
    os.mkfifo(root / "dog" / "pipe.png")
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert "7 of 27 images cannot be used" in message
    for name in (*bad, "dog/nowhere.png", "dog/pipe.png"):
        assert f"\n  '{name}': " in message
    assert "--skip-bad" in message
    assert "0x" not in message

    data = load(root, skip_bad=True)
    assert "7 images" in data.notes[0]
    assert set(rows_of(data)) == {pixels.tobytes() for pixels in written.values()}
    with pytest.raises(DataError, match="7 of 27"):  # what was cached without them does not hide them
        load(root)


def test_a_long_list_of_bad_images_is_cut_with_a_count(root, load):
    write_folder(root)
    for i in range(30):
        (root / "cat" / f"bad{i:02}.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"30 of 50 images cannot be used(?s:.)*and 10 more"):
        load(root)


def test_a_name_with_control_characters_is_escaped_in_the_message(root, load):
    write_folder(root)
    (root / "cat" / "\x1b[2J\udcff.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"\\x1b\[2J\\udcff.png") as caught:
        load(root)
    str(caught.value).encode("utf-8")


def test_a_decompression_bomb_is_refused_from_its_header(root, load):
    write_folder(root)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for name, side in (("huge", 60_000), ("large", 10_000)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        (root / "dog" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    with pytest.raises(DataError, match=r"2 of 22 .*(?s:.)*huge.png': .*bomb(?s:.)*large.png': .*bomb"):
        load(root)


def test_folders_that_cannot_be_compared(root, load):
    with pytest.raises(DataError, match="no image found"):
        load(root)
    write_folder(root, ("cat",))
    with pytest.raises(DataError, match="at least two class folders; found 'cat'"):
        load(root)
    (root / "dog").mkdir()
    (root / "eel").mkdir()
    with pytest.raises(DataError, match=r"no image in these class folders\n  'dog'\n  'eel'"):
        load(root)


def test_images_without_class_folders(root, load):
    (root / "a.png").write_bytes(encoded(images(1)[0]))
    with pytest.raises(DataError, match=r"found none \(images such as 'a.png'\)"):
        load(root)


def test_classes_too_small_to_split_are_all_named(root, load):
    write_folder(root, ("ant", "bee"), each=2)
    write_folder(root, ("cow",), each=3)
    with pytest.raises(DataError, match=r"at least 3\n  'ant': 2\n  'bee': 2$"):
        load(root)


def test_splits_that_disagree(root, load):
    write_folder(root / "train", ("cat", "dog"))
    write_folder(root / "test", ("cat", "dog", "eel"))
    with pytest.raises(DataError, match=r"no training images\n  'eel'"):
        load(root)
    write_folder(root / "extra", ("cat",))
    with pytest.raises(DataError, match=r"every folder beside it must be a split(?s:.)*'extra'"):
        load(root)


def test_what_does_not_exist_is_a_usage_error_that_lists_what_is_understood(tmp_path, load):
    for source in (tmp_path / "nothing", "digts", "", "a\0b", "x" * 5000, "~nobody at all/x", 7):
        with pytest.raises(UsageError, match=r"(?s)Understood are:.*digits.*npz.*Parquet") as caught:
            load(source)
        assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        load("digts")


def test_a_file_of_another_kind(tmp_path, load):
    (tmp_path / "x.txt").write_text("words")
    with pytest.raises(DataError, match=r"(?s)does not read.*Understood are") as caught:
        load(tmp_path / "x.txt")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 1.5}, {"image_size": 0}, {"image_size": 10**6}])
def test_wrong_arguments(load, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=f"{name} is {value}; expected"):
        load("digits", **wrong)
