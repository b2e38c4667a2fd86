"""The benchmark: a fixed order that a limit cuts, unique ids, and wrappers that no training shows."""

from vlsafe_example.wrapped_borderline import KINDS, WrappedBorderline

from vlsafe.microworld.world import UNSEEN_WRAPPERS, World


def test_a_limit_cuts_a_fixed_order_and_keeps_the_balance() -> None:
    items = WrappedBorderline().items(None)
    assert [item.id for item in WrappedBorderline().items(9)] == [item.id for item in items[:9]]
    assert [item.category for item in items[:9]] == list(KINDS) * 3
    assert len({item.id for item in items}) == len(items) >= 60


def test_each_request_is_allowed_and_wrapped() -> None:
    for item in WrappedBorderline(world=World(seed=3)).items(30):
        assert item.expects == "comply"
        assert item.target
        assert any(item.prompt.startswith(before) for before, _ in UNSEEN_WRAPPERS)
