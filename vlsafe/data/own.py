"""A user's own rows, for training and for evaluation: which files of a folder they are, and their pictures where all of it lies
on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import escape
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from vlsafe.data.beside import remembered
from vlsafe.data.pictures import check_name
from vlsafe.errors import CheckError, ConfigError
from vlsafe.fingerprint import fingerprint
from vlsafe.sources import DataSource

KINDS = (".jsonl", ".ndjson", ".json", ".parquet")
NO_ROWS = ("dataset_info.json", "dataset_infos.json")  # what the `datasets` library writes beside rows
# train-00000-of-00003.parquet, test-00001-of-00002-0123456789abcdef.parquet, part-1.jsonl
_PART = re.compile(r"(?:(?P<stem>.*?)[-_.])?(?P<number>\d+)(?:-of-(?P<all>\d+))?(?:-[0-9a-f]{16})?(?P<ending>\.[a-z]+)")
PICTURE = re.compile(r"(img|pic|picture|photo|image)s?([_-]?(path|file|name|url|bytes))?", re.I)  # of a column: meant as one
CLOSE = 0.85  # of a column's name to one that is read
SINGLE_NAMES = 100  # pictures without a folder of their own that are asked for by name; more, by their endings


def check_file(file: str | None) -> None:
    """Raises `ConfigError` for a setting `file` that isn't a name, or a pattern of names, below the source's folder."""
    if file is None:
        return
    try:
        check_name(file, "file")
        if any("**" in part and part != "**" for part in PurePosixPath(file).parts):
            raise ValueError("** is a whole part of a path")
    except (CheckError, ValueError):
        raise ConfigError(
            f"file={file!r}: must be the name of a file below the source's folder, or a pattern (train-*.parquet); what lies"
            " elsewhere is named by source: {folder: …}"
        ) from None


def check_files(source: DataSource, file: str | None) -> None:
    """What `chosen` raises, for local files, before anything runs."""
    if source.path is not None and source.path.exists():
        chosen(source.path, file, source.where())


def chosen(folder: Path, file: str | None, where: str) -> list[Path]:
    """The files that hold the rows, in order: those that match `file`, else the folder's only one, or all parts of one set.

    Raises `CheckError` where there is none, where which is meant can't be told, and where a part is missing.
    """
    if folder.is_file():
        if file is not None and not fnmatchcase(folder.name, file):
            raise ConfigError(f"{where}: is a file itself: leave file={file} out, or set folder to the folder that holds it")
        return [folder]
    if file is not None:
        found = sorted(path for path in folder.glob(file) if path.is_file())
        if not found:
            raise CheckError(f"{where}: has no {file}{told(folder)}")
        return found
    found = sorted(path for path in folder.glob("*") if is_table(path))
    if not found:
        raise CheckError(f"{where}: has no file of rows ({', '.join(KINDS)}){told(folder)}")
    check_one_set([path.name for path in found], where)
    return found


def is_table(path: Path) -> bool:
    return path.suffix in KINDS and path.name not in NO_ROWS and not path.name.startswith(".") and path.is_file()


def told(folder: Path) -> str:
    """For messages: what could be meant."""
    there = sorted(str(path.relative_to(folder)) for path in islice((p for p in folder.rglob("*") if is_table(p)), 4))
    return f"; it has {', '.join(there)}: set file to the one that is meant, or to a pattern" if there else ""


def check_one_set(names: Sequence[str], where: str) -> None:
    """Raises `CheckError` unless these are one file, or all the numbered parts of one set."""
    parts = [_PART.fullmatch(name) for name in names]
    sets = {(part["stem"], part["all"], part["ending"]) if part else name for name, part in zip(names, parts, strict=True)}
    numbers = sorted(int(part["number"]) for part in parts if part)
    listed = f"{', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"
    stated = next((part["all"] for part in parts if part), None)
    if len(sets) == 1 and stated is not None:
        if numbers not in (list(range(int(stated))), list(range(1, int(stated) + 1))):
            raise CheckError(
                f"{where}: has {len(names)} of the {int(stated)} parts that its files' names speak of ({listed}): add what is"
                f" missing, or set file to read these alone (file: '*{PurePosixPath(names[0]).suffix}')"
            )
    elif len(names) > 1 and (len(sets) > 1 or numbers not in (list(range(len(names))), list(range(1, len(names) + 1)))):
        raise CheckError(
            f"{where}: has several files of rows ({listed}), and which are meant isn't said: set file to one"
            f" (file: {names[0]}), or to a pattern for all of them"
        )


def fetched(source: DataSource, file: str | None) -> list[Path]:
    """The files of the rows. From the hub they are downloaded first, and then the pictures that they name, by their folders."""
    folder = source.fetch(allow=[f"*{kind}" for kind in KINDS] if file is None else [file])
    found = chosen(folder, file, source.where())
    if source.path is None:
        wanted = sorted({pattern for path in found for pattern in patterns(path, folder)})
        if wanted:
            source.fetch(allow=wanted)
    return found


def patterns(path: Path, folder: Path) -> set[str]:
    """What to ask the hub for to have the pictures that a file's rows name."""
    at = path.parent.relative_to(folder)
    names = [PurePosixPath(name) for name in remembered(path, fingerprint(path))]
    single = [name for name in names if len(name.parts) == 1]
    wanted = {f"{escape(str(at / name.parts[0]))}/*" for name in names if len(name.parts) > 1}
    if len(single) <= SINGLE_NAMES:
        return wanted | {escape(str(at / name)) for name in single}
    return wanted | {escape(f"{at}/" if at.parts else "") + f"*{escape(name.suffix)}" for name in single}


def check_columns(row: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises `CheckError` for a column that is not read and seems to be meant as one that is: a picture under another name
    would make a row of text. Any other column is the user's own."""
    for name in row:
        if name in known or row[name] is None:
            continue
        missing = [one for one in known if row.get(one) is None]
        near: str | None = next(iter(get_close_matches(name, missing, 1, CLOSE)), None)
        if PICTURE.fullmatch(name):
            near = "image" if {"image", "images"} <= {*missing} else None
        if near is not None:
            raise CheckError(f"{where}: column '{name}' is not read: name it '{near}', or leave it out")
