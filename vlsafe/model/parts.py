"""Which part of a model a tensor belongs to, whatever layout its checkpoint has.

A family has had several layouts of names, and a plain language model is one more. All map onto one canonical name, that of the
family's class in memory (`model.language_model.layers.0…` and `lm_head.weight` in all of them; LLaVA's `model.vision_tower…` and
`model.multi_modal_projector…`, Qwen2.5-VL's `model.visual…` and `model.visual.merger…`), so that tensors of different
checkpoints can be matched. Layouts are data, in the families' records (`vlsafe/model/families.py`). The parts are
`vision_tower`, `projector`, `language_model.embed`, `language_model.layers.N`, `language_model.norm` and
`language_model.lm_head`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.families import FAMILIES, LANGUAGE_MODEL, LM_HEAD, PLAIN, Layout
from vlsafe.settings import closest

# In the order in which `layout_of` tries them: a layout comes before those whose prefixes are a superset of its own.
LAYOUTS = (Layout("language model", PLAIN), *(layout for family in FAMILIES for layout in family.layouts))
_PREFIXES = sorted({p for layout in LAYOUTS for p in layout.prefixes.items()}, key=lambda pair: -len(pair[0]))
_SEEING = sorted((pair for family in FAMILIES for pair in family.parts.items()), key=lambda pair: -len(pair[0]))
# A tower inside a tower is a wrapper's prefix that was saved along with the names.
_WRAPPERS = ("vision_tower", "vision_model", "visual", "model")

_LANGUAGE_PART = re.compile(r"(embed)_tokens\.|(layers\.\d+)\.|(norm)\.")
# Tensors that some releases stored although the code computes them: neither weights nor ever merged.
DERIVED = ("rotary_emb.inv_freq", "embeddings.position_ids")

SELECTORS = ("all", "language_model", "layers", "embed", "norm", "lm_head", "projector", "vision_tower")
_LAYER_RANGE = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def _split(name: str) -> tuple[str, str] | None:
    """(canonical name, part) of a stored name in any layout, or None."""
    for stored, canonical_prefix in _PREFIXES:
        if not name.startswith(stored):
            continue
        rest = name[len(stored) :]
        canonical = canonical_prefix + rest
        if canonical.startswith(LANGUAGE_MODEL):
            inner = _LANGUAGE_PART.match(canonical[len(LANGUAGE_MODEL) :])
            return (canonical, f"language_model.{next(filter(None, inner.groups()))}") if inner else None
        if canonical.startswith(LM_HEAD):
            return canonical, "language_model.lm_head"
        for prefix, part in _SEEING:
            if canonical.startswith(prefix):
                inside = canonical[len(prefix) :]
                whole = not prefix.endswith(".")  # the name of a tensor, not of a module
                known = not inside if whole else inside and inside.split(".")[0] not in _WRAPPERS
                return (canonical, part) if known else None
        return None
    return None


def canonical_names(names: Iterable[str], where: str = "the checkpoint") -> dict[str, str]:
    """Canonical name → stored name; raises `CheckError` for names that no layout knows, or two that mean the same tensor."""
    found: dict[str, str] = {}
    unknown = []
    for name in names:
        split = _split(name)
        if split is None:
            unknown.append(name)
        elif split[0] in found:
            raise CheckError(f"{where}: '{found[split[0]]}' and '{name}' are one tensor, twice: save the model again")
        else:
            found[split[0]] = name
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise CheckError(
            f"{where}: no known layout has the tensor names {shown}; if a wrapper saved the model (ZeRO-3, a trainer), load "
            "it with from_pretrained and save it again; a new family needs a record in vlsafe/model/families.py"
        )
    return found


def canonical_name(name: str) -> str:
    """The canonical name of a stored one, in any known layout; raises `CheckError` for an unknown name."""
    return next(iter(canonical_names([name])))


def part_of(name: str) -> str:
    """The part that a tensor belongs to, from its name in any known layout; raises `CheckError` for an unknown name."""
    split = _split(name)
    if split is None:
        canonical_names([name])
        raise AssertionError("an unknown name passed canonical_names")
    return split[1]


def stored_name(canonical: str, layout: Layout) -> str:
    """The inverse of `canonical_name` in one layout; raises `CheckError` where the layout has no place for the tensor."""
    fitting = [(p, c) for p, c in layout.prefixes.items() if canonical.startswith(c)]
    if not fitting:
        raise CheckError(f"{canonical}: the layout '{layout.name}' has no such tensor")
    # Of the canonical prefixes the longest; of two stored prefixes for it the longer, which is the one that layout writes.
    stored, prefix = max(fitting, key=lambda pair: (len(pair[1]), len(pair[0])))
    return stored + canonical[len(prefix) :]


def layout_of(names: Iterable[str]) -> Layout:
    """The first layout in which every name has its place; raises `CheckError` if there is none."""
    pairs = canonical_names(names)
    for layout in LAYOUTS:
        try:
            if all(stored_name(canonical, layout) == name for canonical, name in pairs.items()):
                return layout
        except CheckError:
            continue
    raise CheckError(f"the checkpoint mixes layouts: none of {', '.join(x.name for x in LAYOUTS)} has all of its names")


def is_derived(name: str) -> bool:
    """True for what the model computes itself (rotary frequencies, position numbers), stored by older releases."""
    return name.endswith(DERIVED)


def selectors(scope: str | tuple[str, ...]) -> tuple[str, ...]:
    return (scope,) if isinstance(scope, str) else scope


def check_scope(scope: str | tuple[str, ...], where: str) -> None:
    """Raises `ConfigError` unless every selector is one of `SELECTORS`, `layers.N` or `layers.N-M` (both ends included)."""
    if not selectors(scope):
        raise ConfigError(f"{where}=[]: selects nothing; choose from: {', '.join(SELECTORS)}, layers.N, layers.N-M")
    for selector in selectors(scope):
        layers = _LAYER_RANGE.fullmatch(selector)
        if layers and layers[2] is not None and int(layers[2]) < int(layers[1]):
            raise ConfigError(f"{where}={selector}: the range is empty; did you mean 'layers.{layers[2]}-{layers[1]}'?")
        if not layers and selector not in SELECTORS:
            raise ConfigError(f"{where}={selector}: {closest(selector, [*SELECTORS, 'layers.N', 'layers.N-M'])}")


def selects(selector: str, part: str) -> bool:
    """Whether one selector of a scope takes in a part (as `part_of` names it)."""
    layers = _LAYER_RANGE.fullmatch(selector)
    if layers:
        kind, _, number = part.rpartition(".")
        return kind == "language_model.layers" and int(layers[1]) <= int(number) <= int(layers[2] or layers[1])
    inner = part.removeprefix("language_model.")
    return selector in ("all", part, part.split(".")[0], inner, inner.split(".")[0])


def in_scope(part: str, scope: str | tuple[str, ...]) -> bool:
    return any(selects(selector, part) for selector in selectors(scope))
