"""A field that goes on from window to window of time, and the whole of its windows.

With window k from t_k to t_{k+1}, s = (t − t_k) / (t_{k+1} − t_k), and a net N_k of its own,

    u_0 = N_0,    u_k = P_k + s^n N_k,
    P_k(t, x) = Σ_{j<n} (t − t_k)^j / j! · ∂_t^j u_{k−1}(t_k, x),

so that values and derivatives by time up to order n − 1 are those of the window before, whatever
N_k is. What goes on over the end of a window is ∂_t^j u_k there, j < n: P_k and N_k say it, and P_k
is made of the same for the window before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp

from pinnkfac.common.errors import UserError


@dataclass(frozen=True)
class TimeWindows:
    """Windows of time between ``edges``, where ``time`` is the number of the coordinate among
    ``coordinates``, and ``orders`` says for each field how many derivatives by time, the value
    included, go on over an edge: n."""

    edges: tuple[float, ...]
    time: int
    coordinates: int
    orders: tuple[int, ...]

    @property
    def number(self) -> int:
        return len(self.edges) - 1

    @property
    def carried(self) -> int:
        """Of the field of which most derivatives go on, how many."""
        return max(self.orders)

    def length(self, k: int) -> float:
        return self.edges[k + 1] - self.edges[k]

    def at(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Points [batch, coord] at another time."""
        column = t if isinstance(t, Tensor) else torch.full_like(x[:, :1], t)
        return torch.cat([x[:, : self.time], column, x[:, self.time + 1 :]], dim=1)

    def places(self, x: Tensor) -> Tensor:
        """Points enough for all places among points [batch, coord], whatever their times: without
        space there is one."""
        return x if self.coordinates > 1 else x[:1]

    def since(self, k: int, x: Tensor) -> Tensor:
        """t − t_k, [batch, 1]."""
        return x[:, self.time : self.time + 1] - self.edges[k]

    def over(self, k: int, before: Tensor | None, net: Tensor) -> Tensor:
        """∂_t^j u_k at the end of window k, [j, …, field], from those of u_{k−1} at its beginning
        (None for the first window) and those of N_k at its end.

            ∂_t^j u_k = Σ_{i≥j} h^{i−j} / (i−j)! ∂_t^i u_{k−1}
                      + Σ_{i≤j} (j over i) ∂_t^{j−i} s^n ∂_t^i N_k
        """
        going_on = net.new_tensor([[float(j < n) for n in self.orders] for j in range(len(net))])
        if before is None:
            total = list(net)
        else:
            h = self.length(k)
            total = []
            for j in range(len(net)):
                parts = [
                    h ** (i - j) / math.factorial(i - j) * before[i] for i in range(j, len(net))
                ]
                for i in range(j + 1):
                    weights = [
                        math.comb(j, i) * math.perm(n, j - i) / h ** (j - i) for n in self.orders
                    ]
                    parts.append(net.new_tensor(weights) * net[i])
                total.append(sum(parts[1:], parts[0]))
        return torch.stack([g * part for g, part in zip(going_on, total, strict=True)])

    def polynomial(self, k: int, before: Tensor, x: Tensor) -> Tensor:
        """P_k [batch, field] at points of window k, from ∂_t^j u_{k−1} at its beginning."""
        since = self.since(k, x)
        terms = [part * since**j / math.factorial(j) for j, part in enumerate(before) if j]
        return sum(terms, before[0])

    def ramp(self, k: int, x: Tensor) -> Tensor:
        """s^n, [batch, field], or [batch, 1] where it is the same for all fields."""
        s = self.since(k, x) / self.length(k)
        powers = [s]
        while len(powers) < self.carried:
            powers.append(powers[-1] * s)
        if len(set(self.orders)) == 1:
            return powers[-1]
        return torch.cat([powers[n - 1] for n in self.orders], dim=1)


def in_time(net: Callable[[Tensor], Tensor], windows: TimeWindows, x: Tensor, t: float) -> Tensor:
    """∂_t^j of a net at points [batch, coord] at time t, [j, batch, field] for all j that go on;
    raises UserError where torch.export, which cannot follow derivatives, asks for them."""
    if windows.carried > 1 and torch.compiler.is_exporting():
        raise UserError(
            "export: a .pt2 file cannot hold windows over which derivatives by time go on: write "
            "a grid, .npz, .csv or .vtu"
        )
    place = windows.at(x, t)
    direction = windows.at(torch.zeros_like(x), 1.0)

    def values(order: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        if order == 0:
            return lambda y: (net(y),)

        def longer(y: Tensor) -> tuple[Tensor, ...]:
            below, ahead = jvp(values(order - 1), (y,), (direction,))  # type: ignore[misc]
            return (*below, ahead[-1])

        return longer

    return torch.stack(values(windows.carried - 1)(place))


class Continuation(nn.Module):
    """P_k, which goes on from the windows before; ``nets`` are theirs, and not trained."""

    def __init__(self, nets: Sequence[nn.Module], windows: TimeWindows) -> None:
        super().__init__()
        self.nets = tuple(nets)  # no submodules: whoever has a Continuation has them
        self.windows = windows

    def forward(self, x: Tensor) -> Tensor:
        windows, before = self.windows, None
        places = windows.places(x)
        for k, net in enumerate(self.nets):
            before = windows.over(k, before, in_time(net, windows, places, windows.edges[k + 1]))
        assert before is not None
        return windows.polynomial(len(self.nets), before, x).expand(len(x), -1)


class WindowField(nn.Module):
    """u_k of the last of the windows that have ``nets``; those before are not trained any more.

    Its state is that of the ``PiecewiseNet`` of the same nets.
    """

    def __init__(self, nets: Sequence[nn.Module], windows: TimeWindows) -> None:
        super().__init__()
        for net in nets[:-1]:
            net.requires_grad_(False)
        self.windows = windows
        self.number = len(nets) - 1
        self.before = Continuation(nets[:-1], windows) if self.number else None
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        y = self.nets[self.number](x)
        if self.before is None:
            return y
        return self.before(x) + self.windows.ramp(self.number, x) * y


class PiecewiseNet(nn.Module):
    """u of all windows that have ``nets``, which are not trained: at each point that of the window
    it lies in, at an edge that of the later one; NaN after the last of them where others are to
    follow."""

    def __init__(self, nets: Sequence[nn.Module], windows: TimeWindows) -> None:
        super().__init__()
        self.windows = windows
        self.nets = nn.ModuleList(nets)
        self.requires_grad_(False)

    def which(self, x: Tensor) -> Tensor:
        """The number of the window of each point, [batch, 1]; those before the first edge and after
        the last one go to the nearest."""
        t = x[:, self.windows.time : self.windows.time + 1]
        inner = self.windows.edges[1:-1]
        return sum(((t >= edge).long() for edge in inner), torch.zeros_like(t, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        windows, before = self.windows, None
        which, t = self.which(x), x[:, self.windows.time : self.windows.time + 1]
        result = x.new_full((1, 1), math.nan)
        for k, net in enumerate(self.nets):
            here = which == k
            # Far from its window a net may overflow, and autograd would make NaN of that.
            inside = windows.at(x, torch.where(here, t, 0.5 * sum(windows.edges[k : k + 2])))
            value = net(inside)
            if before is not None:
                value = windows.polynomial(k, before, inside) + windows.ramp(k, inside) * value
            result = torch.where(here, value, result)
            if k + 1 < len(self.nets):
                before = windows.over(k, before, in_time(net, windows, x, windows.edges[k + 1]))
        return result
