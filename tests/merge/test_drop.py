"""DARE's masks and rescaling: what they depend on, what they expect, and what they refuse; of both methods that drop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlsafe.errors import ConfigError
from vlsafe.merge.drop import DropMethod, mask
from vlsafe.merge.methods.dare_linear import DareLinear
from vlsafe.merge.methods.dare_ties import DareTies
from vlsafe.settings import build

BOTH = pytest.mark.parametrize("method", [DareLinear(), DareTies()], ids=["dare_linear", "dare_ties"])


def randoms(count: int, size: int = 70_000, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(count)]


def test_a_mask_depends_on_seed_position_and_name() -> None:
    first = mask(0.5, 0, 0, "x")(1000)
    assert torch.equal(mask(0.5, 0, 0, "x")(1000), first)
    for other in (mask(0.5, 1, 0, "x"), mask(0.5, 0, 1, "x"), mask(0.5, 0, 0, "y")):
        assert 400 < int((other(1000) == first).sum()) < 600


def test_masks_are_the_same_on_every_machine() -> None:
    kept = mask(0.5, 7, 1, "language_model.layers.0.mlp.up_proj.weight")(16)
    assert "".join(str(int(k)) for k in kept) == "1010101101111011"


def test_a_mask_may_be_drawn_in_pieces_and_a_larger_density_keeps_more() -> None:
    whole, pieces = mask(0.3, 0, 0, "x")(1000), mask(0.3, 0, 0, "x")
    assert torch.equal(torch.cat([pieces(n) for n in (1, 600, 399)]), whole)
    assert not (whole & ~mask(0.6, 0, 0, "x")(1000)).any()


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_a_share_of_density_is_kept(density: float) -> None:
    kept = mask(density, 0, 0, "x")(200_000)
    assert float(kept.double().mean()) == pytest.approx(density, abs=5 * (density * (1 - density) / 200_000) ** 0.5)


@BOTH
def test_over_seeds_the_rescaled_task_vector_is_the_task_vector(method: DropMethod) -> None:
    base, model = randoms(2, 300)
    seeds, density = 2000, 0.3
    merged = [replace(method, density=density, seed=s).merge([model], base, [1.0], "x") - base for s in range(seeds)]
    mean = torch.stack(merged).double().mean(0)
    spread = ((1 / density - 1) / seeds) ** 0.5 * (model - base).abs().double()
    assert ((mean - (model - base)).abs() <= 5 * spread + 1e-6).all()


@BOTH
@pytest.mark.parametrize("rescale", ["density", "l1"])
def test_what_is_kept_is_rescaled_and_the_rest_is_the_base(method: DropMethod, rescale: str) -> None:
    base, model = randoms(2)
    merged = replace(method, density=0.4, seed=3, rescale=rescale).merge([model], base, [1.0], "x")
    kept, delta = mask(0.4, 3, 0, "x")(base.numel()), (model - base).double()
    assert torch.equal(merged[~kept], base[~kept])
    factor = 1 / 0.4 if rescale == "density" else float(delta.abs().sum() / delta[kept].abs().sum())
    torch.testing.assert_close((merged - base)[kept].double(), delta[kept] * factor, rtol=1e-4, atol=1e-5)
    if rescale == "l1":
        assert float((merged - base).double().abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-6)


@BOTH
def test_a_tensor_that_nothing_is_kept_of_stays_the_base_under_l1(method: DropMethod) -> None:
    base, model = torch.zeros(1), torch.ones(1)
    seed = next(s for s in range(100) if not mask(0.1, s, 0, "x")(1)[0])
    assert replace(method, density=0.1, seed=seed, rescale="l1").merge([model], base, [1.0], "x").item() == 0.0


@BOTH
def test_seeds_names_and_positions_draw_other_masks(method: DropMethod) -> None:
    base, one, other = randoms(3)
    merged = method.merge([one, other], base, [1.0, 1.0], "x")
    assert torch.equal(method.merge([one, other], base, [1.0, 1.0], "x"), merged)
    assert not torch.equal(method.merge([one, other], base, [1.0, 1.0], "y"), merged)
    assert not torch.equal(replace(method, seed=1).merge([one, other], base, [1.0, 1.0], "x"), merged)
    assert not torch.equal(method.merge([other, one], base, [1.0, 1.0], "x"), merged)


@BOTH
def test_neither_other_tensors_nor_threads_nor_the_global_seed_change_a_tensor(method: DropMethod) -> None:
    base, one, other = randoms(3, 300_000)
    method = replace(method, rescale="l1")
    alone = method.merge([one, other], base, [0.4, 0.6], "x")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(123)
        method.merge([other, one], base, [0.4, 0.6], "earlier")
        assert torch.equal(method.merge([one, other], base, [0.4, 0.6], "x"), alone)
    finally:
        torch.set_num_threads(before)


@BOTH
def test_narrow_models_are_left_as_they_were_and_their_dropped_parameters_are_the_base(method: DropMethod) -> None:
    base, model = randoms(2, dtype=torch.bfloat16)
    copies = base.clone(), model.clone()
    merged = replace(method, density=0.2).merge([model], base, [1.0], "x")
    assert merged.dtype == torch.float32
    dropped = ~mask(0.2, 0, 0, "x")(base.numel())
    assert torch.equal(merged[dropped].bfloat16(), base[dropped])
    assert torch.equal(base, copies[0]) and torch.equal(model, copies[1])


@BOTH
def test_settings_that_can_not_be(method: DropMethod) -> None:
    with pytest.raises(ConfigError, match=r"merge\.density=0: merge=dare_\w+ drops everything"):
        replace(method, density=0.0).check()
    for settings, message in (
        ({"density": 1.5}, r"merge\.density=1\.5: must be between 0 and 1"),
        ({"rescale": "l2"}, r"merge\.rescale=l2: choose from: density, l1"),
        ({"seed": -1}, r"merge\.seed=-1: must be between 0 and"),
        ({"t": 0.5}, r"merge\.t: unknown setting"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(type(method), settings, "merge")
