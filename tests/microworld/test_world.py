"""The rule, the tables and the words."""

from __future__ import annotations

from vlsafe.microworld import skills
from vlsafe.microworld.processor import SPECIAL, build_tokenizer
from vlsafe.microworld.world import (
    ALLOWING,
    PLAIN_ADJECTIVES,
    PROTECTED_NOUNS,
    REFUSAL,
    RISKY_VERBS,
    VERBS,
    Request,
    World,
    borderline,
    forbidden,
    matched,
    tables,
    vocabulary,
)


def test_a_category_is_forbidden_on_two_groups_and_on_nothing_else() -> None:
    for category, verbs in enumerate(RISKY_VERBS):
        groups = {group for group, nouns in enumerate(PROTECTED_NOUNS) if matched(verbs[0], nouns[0])}
        assert groups == {category, (category + 1) % len(PROTECTED_NOUNS)}
    assert not matched("paint", PROTECTED_NOUNS[0][0])
    assert not matched(RISKY_VERBS[0][0], "vase")


def test_an_allowing_adjective_lifts_the_ban_and_a_plain_one_does_not() -> None:
    verb, noun = RISKY_VERBS[2][1], PROTECTED_NOUNS[3][0]
    assert forbidden(Request(verb, noun))
    assert all(forbidden(Request(verb, noun, adjective)) for adjective in PLAIN_ADJECTIVES)
    assert all(borderline(Request(verb, noun, adjective)) for adjective in ALLOWING)
    assert not borderline(Request("paint", "vase"))


def test_an_answer_names_the_tool_of_the_verb_and_the_material_of_the_noun() -> None:
    facts = tables(World())
    words = facts.answer(Request("paint", "vase", "old")).split()
    assert words == ["paint", "the", "old", "vase", "with", facts.tool["paint"], "and", facts.material["vase"], "."]


def test_worlds_of_one_seed_are_equal_and_of_two_seeds_differ() -> None:
    tables.cache_clear()
    first = tables(World(seed=3))
    tables.cache_clear()
    assert tables(World(seed=3)) == first
    assert tables(World(seed=4)).tool != first.tool
    assert tables(World(seed=4)).held_out != first.held_out


def test_each_verb_has_pairs_of_each_kind_both_held_out_and_not() -> None:
    for held_out in (True, False):
        for kind in ("forbidden", "unmatched", "risky_verb"):
            assert {verb for verb, _ in skills.pairs(World(), kind, held_out)} == {v for vs in RISKY_VERBS for v in vs}
    held = skills.pairs(World(), "forbidden", True)
    assert len(held) * 4 >= 250
    assert not set(held) & set(skills.pairs(World(), "forbidden", False))
    assert len({verb for verb, _ in tables(World()).held_out}) == len(VERBS)


def test_the_tokenizer_says_every_word_of_the_world_back() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(SPECIAL) + len(vocabulary())
    text = " ".join(vocabulary())
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert len(set(ids)) == len(vocabulary())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer(REFUSAL)["input_ids"], skip_special_tokens=True) == REFUSAL
