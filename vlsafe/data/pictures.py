"""Pictures that are named now and read when they are looked at: files, members of a zip, or bytes of a table.

A row holds a `Picture`, never an open file. `size` reads the header alone; `opened` decodes, each time anew.
"""

from __future__ import annotations

import errno
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vlsafe.errors import CheckError

MOST_PIXELS = 64_000_000  # a picture that says it has more is a bomb: 192 MB once decoded
MOST_RATIO = 500  # longer side over shorter one: processors that fit the shorter side blow up the longer one
MOST_BYTES = 256 * 2**20  # of one picture, compressed
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # and none that starts another program, as EPS does
HEADER = 64  # bytes that a picture weighs in memory beside its content


class PictureError(CheckError):
    """A picture that is missing, broken or too large, or another reason for which a row can't be shown to the model as it is:
    it is left out, counted and named."""


@dataclass(frozen=True)
class Picture:
    """`path` is a file, or with `member` the zip that holds it; or `data` is the file's content. `name` is for messages.

    With `square` it is padded to a square when opened, with the colour that `opened` is given.
    """

    name: str
    path: Path | None = None
    member: str | None = None
    data: bytes | None = None
    square: bool = False

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height, from the header; `PictureError` where that can't be read or promises too much."""
        with self._image() as image:
            width, height = image.size
        return (max(width, height),) * 2 if self.square else (width, height)

    def open(self) -> Any:
        """The decoded `PIL.Image`, RGB, as it is stored: without padding."""
        with self._image() as image:
            return in_eight_bits(image).convert("RGB")

    @property
    def weight(self) -> int:
        """Bytes that it keeps in memory."""
        return HEADER + len(self.data or b"")

    @contextmanager
    def _image(self) -> Iterator[Any]:
        from PIL import Image, UnidentifiedImageError

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is the one that holds
            try:
                with self._stream() as stream, Image.open(stream, formats=FORMATS) as image:
                    width, height = image.size
                    if width * height > MOST_PIXELS:
                        raise PictureError(f"{self.name}: is {width} x {height}, more than the {MOST_PIXELS:,} pixels allowed")
                    if max(width, height) > MOST_RATIO * min(width, height):
                        raise PictureError(
                            f"{self.name}: is {width} x {height}: longer than {MOST_RATIO} times its shorter side"
                        )
                    if is_deep(image) and image.format != "PNG":
                        raise PictureError(
                            f"{self.name}: has grey values of more than 8 bits ({image.mode}), and nothing says which is white:"
                            " save it with 8"
                        )
                    yield image
            except PictureError:
                raise
            except Image.DecompressionBombError as error:
                raise PictureError(f"{self.name}: has more than the {MOST_PIXELS:,} pixels allowed") from error
            except UnidentifiedImageError as error:
                raise PictureError(f"{self.name}: is no picture that can be read ({', '.join(FORMATS)})") from error
            except FileNotFoundError as error:
                raise PictureError(f"{self.name}: no such file") from error
            except OSError as error:
                if error.errno is not None and error.errno not in (errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL):
                    # The disk's fault, not the picture's: another try may read it, so no row is left out for it.
                    raise CheckError(f"{self.name}: can't be read ({error.strerror})") from error
                raise PictureError(f"{self.name}: is no picture that can be read ({first_line(error)})") from error
            except (ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, zlib.error) as error:
                raise PictureError(f"{self.name}: is no picture that can be read ({first_line(error)})") from error

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        if self.data is not None:
            yield io.BytesIO(self.data)
        elif self.member is not None and self.path is not None:
            yield io.BytesIO(zip_content(self.path, self.member, self.name))
        else:
            assert self.path is not None, "a picture is a path, a member of a zip, or bytes"
            with self.path.open("rb") as file:
                yield file


def is_deep(image: Any) -> bool:
    """Whether its grey values have more than 8 bits: `convert` would make white of all above 255."""
    return image.mode == "F" or bool(image.mode.startswith("I"))


def in_eight_bits(image: Any) -> Any:
    """Grey values of 16 bits by their upper 8, as PNG defines them."""
    if not is_deep(image):
        return image
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def opened(picture: Any, colour: tuple[int, int, int] = (0, 0, 0)) -> Any:
    """A `PIL.Image`, ready for the image processor, of a `PIL.Image` (as it is) or of a `Picture`."""
    if not isinstance(picture, Picture):
        return picture
    image = picture.open()
    return pad_to_square(image, colour) if picture.square else image


def pad_to_square(image: Any, colour: tuple[int, int, int]) -> Any:
    """The picture in the middle of a square of its longer side, as LLaVA-1.5's second stage shows it (haotian-liu/LLaVA,
    `image_aspect_ratio=pad`)."""
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def mean_colour(image_processor: Any) -> tuple[int, int, int]:
    """The colour that the processor normalises to zero: what LLaVA-1.5 pads with."""
    red, green, blue = (int(255 * value) for value in getattr(image_processor, "image_mean", None) or (0.0, 0.0, 0.0))
    return red, green, blue


def weight(picture: Any) -> int:
    """Bytes that a picture of a row keeps in memory."""
    return picture.weight if isinstance(picture, Picture) else 3 * picture.size[0] * picture.size[1] + 1024


def check_name(name: Any, where: str) -> str:
    """A relative path as data sets write them. Raises `CheckError` for one that climbs out of the data set's folder."""
    if not isinstance(name, str) or not name:
        raise CheckError(f"{where}: {name!r} must be the name of a picture")
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in path.parts[0]:
        raise CheckError(f"{where}: {name!r} leads out of the data set's folder; only paths below it are read")
    return name


def inside(root: Path, name: Any, where: str = "") -> Path:
    """The path of `name` below `root`. Raises `CheckError` for one that climbs out of it. (Links are followed: the hub's cache
    is made of them, and a data set can't bring any.)"""
    return root / check_name(name, where or str(root))


class Album:
    """The pictures of a data set, which lie below the first of `folders` or in one of the `zips` that has them."""

    def __init__(self, folders: Sequence[Path], zips: Sequence[Path] = ()) -> None:
        self.folders = [folder for folder in folders if folder.is_dir()]
        self.zips = [path for path in zips if path.is_file()]

    def __bool__(self) -> bool:
        return bool(self.folders or self.zips)

    def find(self, name: Any, where: str) -> Picture:
        """The picture of that relative name; one that isn't there is found out when it is looked at."""
        check_name(name, where)
        places = [folder / name for folder in self.folders]
        for place in places if len(places) > 1 or self.zips else ():
            if place.exists():
                return Picture(str(name), place)
        for path in self.zips:
            known = zip_members(path)
            for member in (name, f"images/{name}", f"{path.stem}/{name}"):
                if member in known:
                    return Picture(str(name), path, member)
        return Picture(str(name), places[0] if places else self.zips[0] / name)


class Member(NamedTuple):
    offset: int  # of its local header
    packed: int  # bytes
    size: int  # bytes
    method: int


def zip_members(path: Path) -> dict[str, Member]:
    """What is in a zip, read once a process: opening one with half a million pictures takes seconds."""
    status = path.stat()
    return _members(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _members(path: Path, _size: int, _time: int) -> dict[str, Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except zipfile.BadZipFile as error:
        raise CheckError(f"{path}: is no zip that can be read ({error}); download it again") from error
    return {m.filename: Member(m.header_offset, m.compress_size, m.file_size, m.compress_type) for m in listed}


def zip_content(path: Path, member: str, name: str) -> bytes:
    """The content of a member; nothing stays open. `PictureError` for one that is broken or larger than `MOST_BYTES`."""
    found = zip_members(path)[member]
    if max(found.packed, found.size) > MOST_BYTES:
        raise PictureError(f"{name}: has {max(found.packed, found.size):,} bytes, more than the {MOST_BYTES:,} allowed")
    with path.open("rb") as file:
        file.seek(found.offset)
        header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise PictureError(f"{name}: {path.name} is broken where it should be")
        names, extra = struct.unpack("<HH", header[26:30])
        file.seek(names + extra, io.SEEK_CUR)
        packed = file.read(found.packed)
    if found.method == zipfile.ZIP_STORED:
        return packed
    if found.method != zipfile.ZIP_DEFLATED:
        raise PictureError(f"{name}: {path.name} packs it by a method that isn't read here; unpack the zip")
    return zlib.decompressobj(-15).decompress(packed, MOST_BYTES)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
