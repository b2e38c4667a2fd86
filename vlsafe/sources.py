"""Where a model or a data set comes from: the hub at one commit, a local folder, or a local mirror of the hub.

    llm: {id: org/name, revision: 0123…}     the hub, at a commit
    llm: {folder: /data/my-model}            a folder
    local=/data/hub                          every id that lies at /data/hub/org/name is read there

What enters the key is the commit, or the content of local files; never a path. A hub id without a revision is resolved to its
newest commit once, and the store remembers it: a sweep never moves on to another one by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from vlsafe.errors import ConfigError, SourceError
from vlsafe.files import read_json, write_json
from vlsafe.settings import execution

Kind = Literal["model", "dataset"]
T = TypeVar("T")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
UNRESOLVED = "unresolved"
REVISIONS = "revisions.json"  # in the store: the commit of each hub id that was asked for without one


@dataclass(frozen=True)
class Source:
    """A model's. `folder` is taken before `local`, the root of a mirror, and that before the hub. `revision` is a commit."""

    kind: ClassVar[Kind] = "model"

    id: str | None = None
    revision: str | None = None
    folder: str | None = execution(None)
    local: str | None = execution(None)

    def __post_init__(self) -> None:
        if self.id is None and self.folder is None:
            raise ConfigError("a source needs a hub id (id: org/name) or a folder (folder: /path)")
        if self.id is not None and (not _ID.fullmatch(self.id) or ".." in self.id):
            raise ConfigError(f"id={self.id!r}: must be a hub id, as org/name; a path goes under folder")
        if self.revision is not None and self.revision != UNRESOLVED and not _COMMIT.fullmatch(self.revision):
            raise ConfigError(
                f"{self.id}: revision={self.revision!r}: must be a commit (40 hex digits), since a branch or tag moves;"
                " null takes the newest one now and stays with it"
            )

    @property
    def path(self) -> Path | None:
        """The local folder (or file) that stands for it; None where it comes from the hub."""
        if self.folder is not None:
            return Path(self.folder)
        if self.local is not None and self.id is not None:
            mirrored = Path(self.local) / self.id
            return mirrored if mirrored.exists() else None
        return None

    def where(self) -> str:
        """For messages: the folder, or the hub's id."""
        return str(self.path or self.id)

    def spec(self) -> dict[str, Any]:
        """What enters a key: the content of what is local, else the id and its commit."""
        if self.path is None:
            return {"id": self.id, "revision": self.revision or UNRESOLVED}
        if not self.path.exists():
            raise SourceError(f"folder={self.folder}: there is no such file or folder")
        return {"content": self.content(self.path)}

    @staticmethod
    def content(path: Path) -> str:
        """What stands for local files in a key."""
        from vlsafe.fingerprint import fingerprint

        return fingerprint(path)

    def fetch(self, allow: Sequence[str] | None = None) -> Path:
        """The local folder (or file), downloaded where it has to be; `allow` are the patterns of the files that are needed.

        Raises `SourceError`, which says what to do, where it isn't there, isn't allowed or can't be reached.
        """
        if self.path is not None:
            if not self.path.exists():
                raise SourceError(f"folder={self.folder}: there is no such file or folder")
            return self.path
        if self.revision in (None, UNRESOLVED):
            raise SourceError(unresolved(self))
        from huggingface_hub import snapshot_download

        patterns = list(allow) if allow else None
        with hub_errors(self, patterns):
            return Path(snapshot_download(str(self.id), repo_type=self.kind, revision=self.revision, allow_patterns=patterns))


@dataclass(frozen=True)
class DataSource(Source):
    """A data set's or a benchmark's. A file brings the pictures beside it that its rows name."""

    kind: ClassVar[Kind] = "dataset"

    @staticmethod
    def content(path: Path) -> str:
        from vlsafe.data.beside import fingerprint_rows

        return fingerprint_rows(path)


# Data sets with an id like the hub's that the hub doesn't have, and what fetches them.
ELSEWHERE = {"ThuCCSLab/FigStep": "git clone https://github.com/ThuCCSLab/FigStep FOLDER"}


def unresolved(source: Source) -> str:
    if source.id in ELSEWHERE:
        return f"{source.id} is not on the hub: {ELSEWHERE[source.id]}, and set its source's folder, or a mirror that holds it"
    return (
        f"{source.id}: its commit is not known, and the hub can't be asked from here: set its revision, or folder, or a mirror"
        " (local=FOLDER with org/name below it)"
    )


class hub_errors:  # noqa: N801
    """Turns what the hub's client raises into one line that says what to do."""

    def __init__(self, source: Source, allow: Sequence[str] | None = None) -> None:
        self.source, self.allow = source, allow

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> Literal[False]:
        if not isinstance(error, Exception) or isinstance(error, SourceError):
            return False
        told = explain(error, self.source, self.allow)
        if told is not None:
            raise SourceError(told) from error
        return False


def page(source: Source) -> str:
    """The page of the hub where a gated repository's terms are accepted."""
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{host}/{'datasets/' if source.kind == 'dataset' else ''}{source.id}"


def download(source: Source, allow: Sequence[str] | None, to: str | None = None) -> str:
    """The command that downloads what `fetch(allow)` reads, into the hub's cache or the folder `to`."""
    parts = ["hf", "download", str(source.id)]
    parts += ["--repo-type", "dataset"] if source.kind == "dataset" else []
    parts += [] if source.revision in (None, UNRESOLVED) else ["--revision", str(source.revision)]
    parts += [part for pattern in allow or () for part in ("--include", pattern)]
    parts += [] if to is None else ["--local-dir", to]
    return shlex.join(parts)


def explain(error: Exception, source: Source, allow: Sequence[str] | None = None) -> str | None:
    """The line for an error of the hub's client; None for any other error."""
    from huggingface_hub import errors

    has = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    if isinstance(error, errors.GatedRepoError):
        return f"{source.id} is gated: accept its terms at {page(source)}, and set HF_TOKEN to a token that may read it ({has})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{source.id}: the hub has no {source.kind} of this id, or it is private ({has}): check the id, or set a folder"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{source.id}: the hub has no commit {source.revision} of it: set revision to one that is listed at {page(source)}"
        )
    if isinstance(error, (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError)):
        return (
            f"{source.id}: is not in the local cache and the hub can't be reached ({type(error).__name__}): download it where"
            f" there is a network ({download(source, allow)}), or set its folder or a mirror (local=FOLDER)"
        )
    return None


def placed(value: T, local: str | None, record: Path | None = None) -> T:
    """A component with the mirror's root in every `Source` in it.

    With `record`, sources without a revision get the one that this file holds, or the hub's newest, which is then kept there.
    """
    return _placed(value, local, record)  # type: ignore[no-any-return]


def _placed(value: Any, local: str | None, record: Path | None) -> Any:
    if isinstance(value, Source):
        folder = None if value.folder is None else str(Path(value.folder).expanduser().absolute())
        source = (
            value if (value.folder, value.local) == (folder, local) else dataclasses.replace(value, folder=folder, local=local)
        )
        if record is None or source.revision is not None or source.path is not None:
            return source
        return dataclasses.replace(source, revision=commit(source, record))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _placed(getattr(value, f.name), local, record) for f in dataclasses.fields(value) if f.init}
        same = all(changed[name] is getattr(value, name) for name in changed)
        return value if same else dataclasses.replace(value, **changed)
    if isinstance(value, Mapping):
        made = {k: _placed(v, local, record) for k, v in value.items()}
        return value if all(made[k] is value[k] for k in made) else made
    if isinstance(value, (list, tuple)):
        items = [_placed(v, local, record) for v in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    return value


def sources_of(value: Any, path: str = "") -> Iterator[tuple[str, Source]]:
    """Every `Source` in a component, with its dotted path."""
    if isinstance(value, Source):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from sources_of(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from sources_of(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from sources_of(item, f"{path}[{index}]")


def commit(source: Source, record: Path) -> str:
    """What a hub id without a revision stands for: the recorded commit, else the newest; `UNRESOLVED` if that can't be told."""
    name = f"{source.kind}s/{source.id}"
    known: dict[str, str] = read_json(record) if record.is_file() else {}
    if name not in known:
        newest = _newest(str(source.id), source.kind)
        if newest == UNRESOLVED:
            return UNRESOLVED
        known[name] = newest
        write_json(record, dict(sorted(known.items())))
    return known[name]


@functools.cache
def _newest(id: str, kind: Kind) -> str:
    """Asks the hub once a process; a repository that isn't there or is gated is an error, a hub out of reach is not."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return UNRESOLVED
    try:
        return str(HfApi().repo_info(id, repo_type=kind, timeout=10).sha)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise SourceError(str(explain(error, (DataSource if kind == "dataset" else Source)(id)))) from error
    except Exception:
        return UNRESOLVED


def unresolved_in(spec: Any) -> list[str]:
    """The hub ids in a stage's spec whose commit is not known."""
    if isinstance(spec, Mapping):
        if spec.get("revision") == UNRESOLVED:
            return [str(spec.get("id"))]
        return [id for value in spec.values() for id in unresolved_in(value)]
    if isinstance(spec, (list, tuple)):
        return [id for value in spec for id in unresolved_in(value)]
    return []


def check_resolved(specs: Mapping[str, Any]) -> None:
    """Raises `SourceError` where a stage that is to run (label → spec) names a hub id at no known commit."""
    missing = sorted({id for spec in specs.values() for id in unresolved_in(spec)})
    if missing:
        more = f" (and of {', '.join(missing[1:])})" if missing[1:] else ""
        raise SourceError(unresolved(Source(missing[0])) + more)
