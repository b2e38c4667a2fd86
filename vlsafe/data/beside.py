"""The pictures that lie beside a file of rows: which ones its rows name, where they are found, and what of them enters a key.

A data set given as a folder enters its key with all that is in it. Given as one file, it is that file and the pictures that its
rows name, wherever a reader would find them: from where the file lies, in a folder beside it (`images`, `train`, `test`), or in
a zip of such a name. What else lies there is somebody else's.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlsafe.data.pictures import Album, check_name
from vlsafe.data.tables import CsvTable, open_table
from vlsafe.errors import CheckError
from vlsafe.files import read_json, write_json
from vlsafe.fingerprint import PICTURES, TOLD, cache_folder, contents, fingerprint
from vlsafe.keys import digest

AlbumName = Literal["images", "train", "test"]
ALBUMS: tuple[AlbumName, ...] = ("images", "train", "test")
COLUMNS = ("image", "images")  # of any other column, text that ends as a picture's name does
ENDINGS = (*PICTURES, ".bmp", ".tif", ".tiff")
TABLES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
RULE = 1  # raise it when other names are found in the same file, so that what was remembered is not used
# Up to both of these pictures are read, since small drawn ones often have one size; of more, size alone counts, as in a folder.
FEW, LIGHT = 1_000, 200_000_000  # pictures, bytes
OFTEN = 100  # names: a file with more is looked after once by a command, which asks for every cell
_often: dict[tuple[Path, str], str] = {}


class Found(NamedTuple):
    label: str  # its path from where the file of rows lies
    path: str
    size: int


def album_of(folder: Path, name: AlbumName = "images") -> Album:
    """The pictures beside a data set's file: in the folder or zip `name`, or as paths from where the file lies."""
    root = folder.parent if folder.is_file() else folder
    return Album([root / name, root], [root / f"{name}.zip"])


def fingerprint_rows(path: Path) -> str:
    """The fingerprint of a data set's folder, or of a file of rows with the pictures beside it that they name.

    Raises `CheckError` where its rows can't be read.
    """
    own = fingerprint(path)
    if path.is_dir() or path.suffix.lower() not in TABLES:
        return own
    path = path.absolute()
    if (path, own) in _often:
        return _often[path, own]
    names = remembered(path, own)
    found = beside(path.parent, names)
    if not found:
        return own
    few = len(found) <= FEW and sum(picture.size for picture in found) <= LIGHT
    sizes = {p.label: f"size {p.size}" for p in found if p.label.lower().endswith(PICTURES) and not few}
    read = contents([(p.label, Path(p.path)) for p in found if p.label not in sizes])
    key = digest([own, sorted({**sizes, **read}.items())])
    if len(names) > OFTEN:
        _often[path, own] = key
    return key


@functools.lru_cache(maxsize=8)
def remembered(path: Path, content: str) -> Sequence[str]:
    """`names_in` a file of this content, which is read once and then kept in the user's cache folder."""
    kept = cache_folder() / "pictures" / f"{content}-{RULE}.json"
    with contextlib.suppress(OSError, ValueError):
        return list(map(str, read_json(kept)))
    size = path.stat().st_size
    if size > TOLD / 10:
        print(f"looking through {size / 1e9:.1f} GB of {path} once, for the pictures that it names", file=sys.stderr)
    names = sorted(names_in(path))
    with contextlib.suppress(OSError):
        write_json(kept, names)
    return names


def names_in(path: Path) -> set[str]:
    """The relative paths of pictures that the rows of a file name. Those that lead out of its folder are left out: no reader
    follows them."""
    names: set[str] = set()
    for row in parquet_rows(path) if path.suffix.lower() == ".parquet" else rows(path):
        for column, value in row.items():
            if column in COLUMNS:
                names.update(named(value))
            elif isinstance(value, str) and value.lower().endswith(ENDINGS):
                names.add(value)
    return {name for name in names if may_be(name)}


def rows(path: Path) -> Iterable[Any]:
    return CsvTable(path) if path.suffix.lower() == ".csv" else open_table([path])


def parquet_rows(path: Path) -> Iterator[Any]:
    """Rows without anything but the text that may name a picture: pictures themselves are not read."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            leaves = [file.schema.column(i) for i in range(len(file.schema))]
            texts = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
            wanted = [p for p in texts if "." not in p or p.partition(".")[0] in COLUMNS]
            for batch in file.iter_batches(columns=wanted) if wanted else ():
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise CheckError(f"{path}: is no Parquet that can be read ({str(error).splitlines()[0]})") from None


def named(value: Any) -> Iterator[str]:
    """The paths in a column of pictures: a path, `{"path"}` without bytes, or a list of these."""
    if isinstance(value, list):
        for one in value:
            yield from named(one)
    elif isinstance(value, dict) and value.get("bytes") is None:
        yield from named(value.get("path"))
    elif isinstance(value, str):
        yield value


def may_be(name: str) -> bool:
    try:
        check_name(name, "")
        name.encode()
    except (CheckError, UnicodeEncodeError):
        return False
    return True


def beside(root: Path, names: Iterable[str]) -> list[Found]:
    """The files that these names stand for, in every place where one is; the zips too, where a name is found in none."""
    prefixes = ["", *(f"{album}/" for album in ALBUMS if (root / album).is_dir())]
    found: dict[str, Found] = {}
    lost = False
    for name in names:
        there = [one for prefix in prefixes if (one := _look(f"{prefix}{name}", root)) is not None]
        found.update((one.label, one) for one in there)
        lost = lost or not there
    for album in ALBUMS if lost else ():
        packed = _look(f"{album}.zip", root)
        if packed is not None:
            found[packed.label] = packed
    return list(found.values())


def _look(label: str, root: Path) -> Found | None:
    path = f"{root}/{label}"
    try:
        status = os.stat(path)  # noqa: PTH116 - half a million of them: a `Path` for each takes longer than asking
    except OSError:
        return None
    return Found(label, path, status.st_size) if stat.S_ISREG(status.st_mode) else None
