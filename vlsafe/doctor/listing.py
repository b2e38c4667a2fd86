"""What the hub itself says of the repositories that a command needs: their files, sizes and gates.

It is asked for lists only, once and for a few seconds; where it can't be reached, or `HF_HUB_OFFLINE` is set, nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from vlsafe.doctor.cache import offline, online
from vlsafe.sources import ELSEWHERE, UNRESOLVED, Source, explain

SECONDS = 4.0  # for an answer
AT_ONCE = 8
WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # pickled


class Listing(NamedTuple):
    """`sizes` are bytes by file, `refused` what is wrong with the repository's id or commit."""

    sizes: Mapping[str, int] = {}
    gated: bool = False
    refused: str = ""

    def of(self, allow: Sequence[str] | None) -> dict[str, int]:
        """Those that are downloaded with these patterns."""
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        kept = set(filter_repo_objects(self.sizes, allow_patterns=None if allow is None else list(allow)))
        return {name: size for name, size in self.sizes.items() if name in kept}

    def only_pickled(self, allow: Sequence[str] | None) -> bool:
        return not any(n.endswith(".safetensors") for n in self.of(allow)) and any(n.endswith(WEIGHTS) for n in self.sizes)


Listings = Mapping[tuple[str, str], Listing]


def ask(wanted: Iterable[Source]) -> dict[tuple[str, str], Listing]:
    """By kind and id; without those of which nothing is known."""
    asked = {(source.kind, str(source.id)): source for source in wanted if source.id is not None and source.id not in ELSEWHERE}
    if offline() or not asked:
        return {}
    with online() as api, ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda source: _listing(api, source), asked.values()))
    return {key: listing for key, listing in zip(asked, found, strict=True) if listing is not None}


def _listing(api: Any, source: Source) -> Listing | None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    commit = None if source.revision == UNRESOLVED else source.revision
    try:
        info = api.repo_info(source.id, repo_type=source.kind, revision=commit, files_metadata=True, timeout=SECONDS)
    except GatedRepoError:
        return None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        return Listing(refused=str(explain(error, source)))
    except Exception:  # no network, a proxy's page, a time-out: what is not known is not said
        return None
    return Listing({file.rfilename: int(file.size or 0) for file in info.siblings or ()}, bool(info.gated))
