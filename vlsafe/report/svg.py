"""matplotlib's SVG made fit for the inside of a page: no style attributes (a strict policy forbids them), colours as classes
that the page's light and dark themes define, ids of its own, and titles on hover."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
# Colours that figures use, by the name under which the page's style defines them for light and dark.
INK, MUTED, GRID, PAPER = "#1b2733", "#5c6b7a", "#dfe5ea", "#ffffff"
# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow is too pale on paper and is darkened.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8a8a00")
LEVELS = 21  # of the heat map's scale
ENDS = ((0xF3, 0xF6, 0xF9), (0xF2, 0xB0, 0x6A), (0xA8, 0x32, 0x0A))  # good, between, bad


def heat_colour(level: int) -> str:
    at = 2 * level / (LEVELS - 1)
    low, high = (ENDS[0], ENDS[1]) if at <= 1 else (ENDS[1], ENDS[2])
    share = at if at <= 1 else at - 1
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


CLASSES: Mapping[str, str] = (
    {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
    | {colour: f"c{i}" for i, colour in enumerate(SERIES)}
    | {heat_colour(i): f"h{i}" for i in range(LEVELS)}
)
DROPPED = ("font", "-inkscape-font-specification", "line-height")


def inline(text: str, name: str, alt: str, titles: Mapping[str, str]) -> str:
    """The `<svg>` element to stand in a page. `titles` are by the gid of what they belong to; `alt` says what is seen."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(text)
    _drop(root)
    for element in root.iter():
        _restyle(element)
        _rename(element, name)
        title = titles.get(element.get("id", "").removeprefix(f"{name}-"))
        if title is not None:
            made = ElementTree.Element(f"{{{SVG}}}title")
            made.text = title
            element.insert(0, made)
    used = set(re.findall(r"#([\w.-]+)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    for element in root.iter():
        if element.get("id", "") not in used:
            element.attrib.pop("id", None)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    shown = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r"\s*\n\s*", "\n", shown)


def _drop(root: ElementTree.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style") or (
                child.tag == f"{{{SVG}}}defs" and all(c.tag == f"{{{SVG}}}style" for c in child)
            ):
                parent.remove(child)


def _restyle(element: ElementTree.Element) -> None:
    style = element.attrib.pop("style", "")
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":  # `8px 'DejaVu Sans', sans-serif`, with a weight before it or not
            size = re.search(r"([\d.]+)px", value)
            if size:
                element.set("font-size", size[1])
            if re.match(r"(bold|[6-9]00)\b", value):
                element.set("font-weight", "600")
        elif name == "font-size":
            element.set(name, value.removesuffix("px"))
        elif name and value and name not in DROPPED and name != "font-family":
            element.set(name, value)
    classes = []
    for attribute, letter in (("fill", "f"), ("stroke", "s")):
        colour = CLASSES.get(element.get(attribute, "").lower())
        if colour:
            del element.attrib[attribute]
            classes.append(f"{letter}-{colour}")
    if element.tag == f"{{{SVG}}}text" and "fill" not in element.attrib and not classes:
        classes.append("f-ink")
    if classes:
        element.set("class", " ".join(classes))


def _rename(element: ElementTree.Element, name: str) -> None:
    for attribute, value in list(element.attrib.items()):
        if attribute == "id":
            element.set("id", f"{name}-{value}")
        elif attribute == f"{{{XLINK}}}href":
            del element.attrib[attribute]
            element.set("href", f"#{name}-{value.removeprefix('#')}")
        elif "url(#" in value:
            element.set(attribute, value.replace("url(#", f"url(#{name}-"))
