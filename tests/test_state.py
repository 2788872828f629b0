"""The state of an object: what is saved, and what an object is that gets it back."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from pinnkfac.common.state import Fixed, restore, state_of


@dataclass(frozen=True)
class Pair:
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Point:
    place: Tensor
    links: dict[str, Tensor] = field(default_factory=dict)
    normal: Tensor | None = None


@dataclass
class Window:
    levels: list[float] = field(default_factory=list)
    cost: float = 0.0


@dataclass
class Average:
    decay: Fixed[float]
    pairs: list[list[Pair]] = field(default_factory=list)
    dense: Pair | None = None
    updates: int = 0


@dataclass
class Step:
    settings: Fixed[Any]
    average: Average
    optimizer: Any = None
    damping: float = 1e-3
    name: str = ""
    past: list[Tensor] = field(default_factory=list)
    first: tuple[float, Tensor] | None = None
    points: tuple[Point, ...] = ()
    windows: dict[str, Window] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    noise: Generator = field(default_factory=Generator)


@dataclass(frozen=True)
class Frozen:
    system: Fixed[object]
    damping: float = 1.0
    window: Window | None = None


@dataclass
class Grown(Window):
    """A later version of Window, with a field more."""

    budget: float = 7.0


def written(state: Any) -> Any:
    """The state as a checkpoint gives it back, with no code in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def fresh() -> Step:
    return Step(settings=object(), average=Average(0.9))


def busy() -> Step:
    """A step in the course of a run: no field is as it was at first."""
    pair = Pair(torch.eye(2), torch.ones(3, 3))
    net = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    step = Step(
        settings=object(),
        average=Average(0.5, [[pair], [pair, pair]], Pair(torch.ones(1, 1), torch.eye(4)), 12),
        optimizer=optimizer,
        damping=0.25,
        name="exact",
        past=[torch.arange(3.0), torch.zeros(2, 2)],
        first=(1.5, torch.ones(2)),
        points=(Point(torch.ones(5, 2), {"end": torch.zeros(5, 2)}), Point(torch.ones(1, 2))),
        windows={"exact": Window([1.0, 2.0], 3.0)},
        window=Window([0.5], 2.0),
    )
    torch.rand(7, generator=step.noise)
    return step


def plain(value: Any) -> Any:
    """A state in which tensors are lists, to be compared by ==."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value


def test_a_state_that_was_written_and_restored_is_the_same_state() -> None:
    before = busy()
    state = state_of(before)
    after = fresh()
    after.optimizer = torch.optim.Adam(nn.Linear(2, 1).parameters())
    assert restore(after, written(state)) is after
    assert plain(state_of(after)) == plain(state)
    assert after.average.pairs[1][0] is not before.average.pairs[1][0]
    assert isinstance(after.average.dense, Pair)
    assert isinstance(after.points[0], Point)
    assert isinstance(after.windows["exact"], Window)
    assert torch.equal(torch.rand(3, generator=after.noise), torch.rand(3, generator=before.noise))


def test_what_an_object_is_made_with_is_no_part_of_its_state() -> None:
    step, settings = fresh(), object()
    step.settings, step.average.decay = settings, 0.125
    restore(step, state_of(busy()) | {"optimizer": None})
    assert step.settings is settings
    assert step.average.decay == 0.125
    assert "settings" not in state_of(step)
    assert "decay" not in state_of(step)["average"]


def test_objects_that_hold_the_same_state_share_no_tensor() -> None:
    before, after = busy(), fresh()
    restore(after, state_of(before) | {"optimizer": None})
    before.past[0].add_(1.0)
    assert torch.equal(after.past[0], torch.arange(3.0))
    before.average.pairs[0][0].a.zero_()
    assert torch.equal(after.average.pairs[0][0].a, torch.eye(2))
    before.window.levels.append(9.0)
    assert after.window.levels == [0.5]


def test_a_state_is_that_of_an_object_as_it_is_unless_it_is_copied() -> None:
    step = busy()
    shared, kept = state_of(step), copy.deepcopy(state_of(step))
    step.past[0].add_(1.0)
    assert torch.equal(shared["past"][0], step.past[0])
    assert torch.equal(kept["past"][0], step.past[0] - 1.0)


def test_nothing_takes_the_place_of_something() -> None:
    step = busy()
    restore(step, state_of(fresh()))
    assert step.average.dense is None
    assert step.average.pairs == []
    assert step.first is None
    assert step.windows == {}


def test_a_frozen_object_is_made_anew() -> None:
    system = object()
    before = Frozen(system)
    after = restore(before, written(state_of(Frozen(object(), 0.5, Window([1.0], 2.0)))))
    assert after == Frozen(system, 0.5, Window([1.0], 2.0))
    assert before == Frozen(system)


def test_a_name_that_an_older_state_lacks_keeps_its_value_and_one_too_many_is_dropped() -> None:
    grown = restore(Grown(), state_of(Window([1.0], 2.0)) | {"gone": 1})
    assert grown == Grown([1.0], 2.0, 7.0)
    assert not hasattr(grown, "gone")


@pytest.mark.parametrize("state", [{"pairs": []}, {}, [], None, 3])
def test_the_state_of_something_else_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="levels, cost"):
        restore(Window(), state)


def test_what_cannot_be_stored_is_refused_when_it_is_saved() -> None:
    with pytest.raises(TypeError, match="object cannot be part of a state"):
        state_of(Window(levels=[object()]))  # type: ignore[list-item]


def test_tensors_go_to_a_device() -> None:
    after = restore(Average(0.5), state_of(busy().average), torch.device("meta"))
    assert after.pairs[0][0].a.device.type == "meta"


def test_numbers_of_numpy_are_stored_as_plain_ones() -> None:
    after = restore(Window(), written(state_of(Window([np.float64(1.5)], np.float64(2.5)))))
    assert after == Window([1.5], 2.5) and type(after.cost) is float
