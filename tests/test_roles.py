"""Which models a cell has: the role table of the design, row by row."""

from __future__ import annotations

import pytest

from vlsafe.errors import ConfigError
from vlsafe.roles import Order, role_table

TABLE = [
    # adapts, tunes, order, chain as role:parent, pair, unmerged, roles that see images
    (True, True, "after", "base adapted:base tuned:adapted", ("adapted", "tuned"), "tuned", "adapted tuned"),
    (True, True, "before", "base tuned:base adapted:tuned", ("tuned", "adapted"), "adapted", "adapted"),
    (True, True, "joint", "base tuned:base", ("base", "tuned"), "tuned", "tuned"),
    (True, False, "after", "base adapted:base", ("base", "adapted"), "adapted", "adapted"),
    (True, False, "joint", "base adapted:base", ("base", "adapted"), "adapted", "adapted"),
    (False, True, "after", "base tuned:base", ("base", "tuned"), "tuned", ""),
    (False, True, "joint", "base tuned:base", ("base", "tuned"), "tuned", ""),
    (False, False, "before", "base", ("base", "base"), "base", ""),
]


@pytest.mark.parametrize(("adapts", "tunes", "order", "chain", "pair", "unmerged", "sees"), TABLE)
def test_roles(adapts: bool, tunes: bool, order: Order, chain: str, pair: tuple[str, str], unmerged: str, sees: str) -> None:
    table = role_table(adapts, tunes, order)
    assert " ".join(f"{r.name}:{r.parent}" if r.parent else r.name for r in table.roles) == chain
    assert table.pair == pair
    assert table.unmerged == unmerged
    assert " ".join(r.name for r in table.roles if r.sees_images) == sees
    assert [r.name for r in table.roles if r.joint] == (["tuned"] if adapts and tunes and order == "joint" else [])


def test_a_model_that_offers_it_is_preceded_by_itself_before_alignment() -> None:
    plain, offered = role_table(True, True, "after"), role_table(True, True, "after", unaligned=True)
    assert [(r.name, r.parent, r.stage) for r in offered.roles[:2]] == [
        ("unaligned", None, "model"),
        ("base", "unaligned", "model"),
    ]
    assert offered.roles[2:] == plain.roles[1:]
    assert (offered.pair, offered.unmerged) == (plain.pair, plain.unmerged)


def test_a_role_that_is_not_there_is_an_error_with_the_ones_that_are() -> None:
    with pytest.raises(ConfigError, match=r"this cell has no role 'tuned'; choose from: adapted, base"):
        role_table(True, False, "after")["tuned"]
