"""What a cell's components read from the hub or from folders: their own sources, with a filter's, and their benchmarks'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlsafe.sources import Source, sources_of


def parts(components: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(how messages name it, component) of each component, those included that others make when they are asked."""
    yield from components.items()
    for benchmark in components["eval"].build():
        yield f"eval: {benchmark.component_name}", benchmark


def needed(components: Mapping[str, Any]) -> Iterator[tuple[str, Source, Any]]:
    """(dotted name, source, the component or data set that it belongs to), each source of a component once."""
    for where, part in parts(components):
        for path, source in sources_of(part):
            yield f"{where}.{path}", source, owner(part, path)


def owner(part: Any, path: str) -> Any:
    """The innermost thing on the way to a source that says how it is licensed: a data set within a mixture, else `part`."""
    found, value = part, part
    for name in path.replace("[", ".").replace("]", "").split(".")[:-1]:
        value = value[name] if isinstance(value, Mapping) else value[int(name)] if name.isdigit() else getattr(value, name)
        if hasattr(value, "licence"):
            found = value
    return found
