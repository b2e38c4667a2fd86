"""Pictures are read when they are looked at, and one that can't be shown is told apart from a disk that fails."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlsafe.data import pictures
from vlsafe.data.pictures import Album, Picture, PictureError, check_name, inside, mean_colour, opened, pad_to_square, weight
from vlsafe.errors import CheckError
from vlsafe.stand_in.sets import picture


def promised(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises that many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_file_a_member_of_a_zip_and_bytes_are_one_picture(tmp_path: Path) -> None:
    content = picture(3, (40, 20), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("stored/a.png", content)
        archive.writestr("packed/a.png", content, compress_type=zipfile.ZIP_DEFLATED)
    alike = [
        Picture("a", tmp_path / "a.png"),
        Picture("a", tmp_path / "some.zip", "stored/a.png"),
        Picture("a", tmp_path / "some.zip", "packed/a.png"),
        Picture("a", data=content),
    ]
    expected = Image.open(io.BytesIO(content)).convert("RGB").tobytes()
    for one in alike:
        assert one.size == (40, 20)
        assert opened(one).tobytes() == expected
        assert opened(one).mode == "RGB"
        assert weight(one) < 200 + len(content)


def test_a_pil_image_is_left_as_it_is() -> None:
    image = Image.new("L", (3, 5))
    assert opened(image) is image


def test_size_reads_the_header_alone_and_nothing_stays_open(tmp_path: Path) -> None:
    content = picture(0, (64, 48))
    (tmp_path / "cut.jpg").write_bytes(content[:-90])
    before = len(list(Path("/proc/self/fd").iterdir()))
    cut = Picture("cut.jpg", tmp_path / "cut.jpg")
    assert cut.size == (64, 48)
    with pytest.raises(PictureError, match=r"cut\.jpg: is no picture that can be read"):
        opened(cut)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no picture"),
        (b"not a picture at all", "is no picture"),
        (picture(0)[:40], "is no picture"),
        (promised(30_000, 30_000), "has more than the .* pixels allowed"),
        (promised(9_000, 9_000), "is 9000 x 9000, more than"),
        (promised(1, 60_000), "is 1 x 60000: longer than"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is no picture"),
    ],
)
def test_what_is_no_picture_or_a_bomb_is_named_before_it_is_decoded(content: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=f"x.png: {message}"):
        _ = Picture("x.png", data=content).size


def test_a_bomb_in_a_zip_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "some.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 100_000)
    with pytest.raises(PictureError, match="has 100,000 bytes, more than the 1,000 allowed"):
        _ = Picture("a.png", tmp_path / "some.zip", "a.png").size


def test_a_missing_file_is_the_pictures_fault_and_a_failing_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PictureError, match=r"no\.jpg: no such file"):
        _ = Picture("no.jpg", tmp_path / "no.jpg").size
    (tmp_path / "is.jpg").write_bytes(picture(1))

    def fails(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(CheckError, match=r"can't be read .Input/output error") as error:
        _ = Picture("is.jpg", tmp_path / "is.jpg").size
    assert not isinstance(error.value, PictureError)


@pytest.mark.parametrize(
    "name", ["../a.jpg", "a/../../b.jpg", "/etc/passwd", "..", "a\\..\\b.jpg", "C:/a.jpg", "a\0b", "", 3, None]
)
def test_a_path_that_climbs_out_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(CheckError, match=r"rows\.json: row 4"):
        inside(tmp_path, name, "rows.json: row 4")


@given(st.lists(st.sampled_from(["..", ".", "a", "b.jpg", "/", "\\", "~", ""]), min_size=1, max_size=6))
def test_whatever_is_let_through_stays_inside(parts: list[str]) -> None:
    name = "/".join(parts)
    try:
        check_name(name, "")
    except CheckError:
        return
    assert os.path.normpath(f"/root/of/all/{name}").startswith("/root/of/all")


def test_padding_centres_the_picture_in_the_colour_that_the_processor_takes_for_zero(tmp_path: Path) -> None:
    class Processor:
        image_mean = (0.48145466, 0.4578275, 0.40821073)

    assert mean_colour(Processor()) == (122, 116, 104)  # int(255 x), as LLaVA does
    (tmp_path / "a.png").write_bytes(picture(5, (40, 20), "PNG"))
    wide = Picture("a", tmp_path / "a.png", square=True)
    assert wide.size == (40, 40)
    square = opened(wide, (1, 2, 3))
    assert square.size == (40, 40)
    assert square.getpixel((0, 0)) == square.getpixel((39, 39)) == (1, 2, 3)
    assert square.crop((0, 10, 40, 30)).tobytes() == opened(Picture("a", tmp_path / "a.png")).tobytes()
    tall = pad_to_square(Image.new("RGB", (2, 6), (9, 9, 9)), (0, 0, 0))
    assert [tall.getpixel((x, 0)) for x in range(6)] == [(0, 0, 0)] * 2 + [(9, 9, 9)] * 2 + [(0, 0, 0)] * 2


def test_an_album_finds_a_picture_in_folders_and_zips(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(picture(0))
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("train/b.jpg", picture(1))
        archive.writestr("c.jpg", picture(2))
    album = Album([tmp_path / "images", tmp_path / "none"], [tmp_path / "train.zip"])
    assert [album.find(f"{name}.jpg", "").size for name in "abc"] == [(48, 32)] * 3
    with pytest.raises(PictureError, match="no such file"):
        _ = album.find("d.jpg", "").size
    with pytest.raises(CheckError, match="row 7"):
        album.find("../d.jpg", "row 7")


def test_grey_values_of_16_bits_stay_grey(tmp_path: Path) -> None:
    """`convert` alone would make white of all above 255."""
    import numpy as np

    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    shown = np.asarray(Picture("deep.png", tmp_path / "deep.png").open())
    assert np.array_equal(shown, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    for name, kind in (("deep.tiff", np.uint16), ("real.tiff", np.float32)):
        Image.fromarray(values.astype(kind)).save(tmp_path / name)
        with pytest.raises(PictureError, match=r"more than 8 bits .*nothing says which is white"):
            _ = Picture(name, tmp_path / name).size
