from __future__ import annotations

import pytest
import torch

from trimtab.agents.stages import stages
from trimtab.spaces import Space, build_space
from trimtab.spaces.zoo import CifarResNet
from trimtab.testing.agents import toy_space

SPACES = [toy_space(), build_space(CifarResNet(20).eval(), torch.zeros(1, 3, 32, 32))]


def sizes(space: Space, found: list[list[int]]) -> list[set[tuple[int, ...]]]:
    return [{space.network.shapes[space.knobs[i].target][1:] for i in knobs} for knobs in found]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("most", [None, 3, 1])
def test_every_knob_is_in_one_stage(space: Space, most: int | None) -> None:
    found = stages(space, most)
    assert sorted(i for knobs in found for i in knobs) == list(range(len(space.knobs)))


@pytest.mark.parametrize("space", SPACES)
def test_a_stage_has_one_spatial_size(space: Space) -> None:
    # Three resolutions, and the classifier, which has none.
    found = sizes(space, stages(space))
    assert [len(of) for of in found] == [1, 1, 1, 1]
    assert found[-1] == {()}


@pytest.mark.parametrize("space", SPACES)
def test_the_smallest_neighbours_become_one(space: Space) -> None:
    found = sizes(space, stages(space, 3))
    # The classifier goes to one of its neighbours.
    assert [len(of - {()}) for of in found] == [1, 1, 1]
