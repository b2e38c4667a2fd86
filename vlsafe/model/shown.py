"""What two processors make of the same picture: models of one cell are to be shown the same, and are merged behind one of the
processors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.model.families import family_of

# Switch of an image processor -> what counts only while it is on. Pictures are RGB before a processor sees them.
SWITCHES: Mapping[str, tuple[str, ...]] = {
    "do_pad": ("pad_size", "background_color"),
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}
PATCHES = ("patch_size", "merge_size", "temporal_patch_size")  # of processors that cut pictures up themselves


def picture_settings(processor: Any) -> dict[str, Any]:
    """Those that act, under the names of preprocessor_config.json."""
    given = processor.image_processor.to_dict()
    made: dict[str, Any] = {}
    for switch, names in SWITCHES.items():
        made[switch] = bool(given.get(switch))
        if made[switch]:
            made |= {name: _plain(given.get(name)) for name in names}
    return made | {name: given[name] for name in PATCHES if name in given}


def _plain(value: Any) -> Any:
    """As JSON has it: numbers to as many digits as 32 bits hold."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in sorted(value.items()) if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return (
        float(f"{value:.6g}") if isinstance(value, float) else value if value is None or isinstance(value, str) else int(value)
    )


def check_pictures(processor: Any, other: Any, pair: str) -> None:
    """Raises `CheckError` where a picture becomes something else in `other`. Where pictures keep their sizes, the limits of
    these are left to `limited_as`."""
    if processor.image_token != other.image_token:
        raise CheckError(f"{pair}: its image token is '{processor.image_token}', and there it is '{other.image_token}'")
    own, theirs = picture_settings(processor), picture_settings(other)
    if family_of(processor).keeps_sizes:
        own["size"] = theirs["size"] = None
    odd = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
    if odd:
        said = "; ".join(f"{name} is {_said(own.get(name))} in it and {_said(theirs.get(name))} there" for name in odd)
        raise CheckError(
            f"{pair}: they would be shown other pictures ({said}): choose models whose processors agree, or a copy whose "
            "preprocessor_config.json is corrected"
        )


def _said(value: Any) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def limited_as(processor: Any, other: Any) -> dict[str, Any]:
    """Gives `processor` the limits that `other` has for the size of a picture, where pictures keep their sizes. Returns what of
    the two differs and is no error, for the manifest."""
    own, theirs = (_plain(p.image_processor.to_dict().get("size")) for p in (processor, other))
    if not family_of(processor).keeps_sizes or own == theirs:
        return {}
    processor.image_processor.size = other.image_processor.size
    return {"picture_limits": {"released": own, "used": theirs}}


def limit(processor: Any, least: int | None, most: int | None, where: str) -> None:
    """Sets the least and the most pixels that a picture is brought to; None leaves the processor's own.

    Raises `CheckError` where the family has no such limits, and where nothing lies between them.
    """
    if least is None and most is None:
        return
    named = "model.max_pixels" if most is not None else "model.min_pixels"
    if not family_of(processor).keeps_sizes:
        raise CheckError(f"{named}: {where} brings every picture to one size, so there is nothing to limit; set it to null")
    pictures = processor.image_processor
    token = (pictures.patch_size * pictures.merge_size) ** 2
    size = {
        "shortest_edge": pictures.size["shortest_edge"] if least is None else least,
        "longest_edge": pictures.size["longest_edge"] if most is None else most,
    }
    if size["longest_edge"] < max(token, size["shortest_edge"]):
        raise CheckError(
            f"{named}: pictures of {where} would have {size['shortest_edge']} pixels at least and {size['longest_edge']} at"
            f" most; set model.max_pixels to no less than model.min_pixels, and to {token} (one token) or more"
        )
    pictures.size = size
