"""A residual written down: every operation that the user's function does, as a graph.

The function is called once, at one point, on placeholders for the slots. torch reports every
operation (``TorchDispatchMode``), and those that depend on a slot, a coordinate, a given value or
a Parameter become nodes. ``evaluate`` runs the graph again on other numbers, so that what is
printed can be compared with what is solved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pinnkfac.domain import PointSet
from pinnkfac.field import At, Context, Coordinates, Form, Key, LinearPart
from pinnkfac.problem import Problem, Term, bind
from pinnkfac.residual import Residual, call

POINT, NORMAL = "the point", "normal"
CONSTANT = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
"""Operations whose result does not depend on the numbers in their arguments."""


@dataclass(eq=False)
class Node:
    """An operation, or a leaf (``function`` is None): a slot, the point, a value, a Parameter.

    ``label`` is how the node is written where that is known. ``number`` orders nodes as they were
    made; arguments are nodes, numbers, constant tensors, or lists of them.
    """

    number: int
    name: str
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    slot: LinearPart | None = None

    @property
    def inputs(self) -> list[Node]:
        return [v for v in _flat([self.args, dict(self.kwargs)]) if isinstance(v, Node)]


@dataclass(frozen=True)
class Equation:
    """Σ c D^α u + remainder = 0, as the user's function returned it."""

    linear: tuple[tuple[Key, float], ...]
    remainder: Node | float


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _flat(entry)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _map(value: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_map(entry, f) for entry in value)
    if isinstance(value, dict):
        return {key: _map(entry, f) for key, entry in value.items()}
    return f(value)


class _Tracer(TorchDispatchMode):
    """Notes the operations on tensors that descend from a leaf."""

    def __init__(self, coordinates: Coordinates) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.nodes: dict[int, Node] = {}
        self.same: dict[Any, Node] = {}
        self.alive: list[Tensor] = []  # the number of a dead tensor would be given away again
        self.count = 0

    def leaf(self, tensor: Tensor, name: str, label: str, slot: LinearPart | None = None) -> Tensor:
        self._keep(tensor, self._node(name, label=label, slot=slot))
        return tensor

    def _keep(self, tensor: Tensor, node: Node) -> None:
        self.alive.append(tensor)
        self.nodes[id(tensor)] = node

    def _node(self, name: str, *arguments: Any, **more: Any) -> Node:
        self.count += 1
        return Node(self.count, name, *arguments, **more)

    def node_of(self, value: Any) -> Any:
        """The node of a tensor; what is no tensor, or depends on no leaf, stays what it is."""
        if not isinstance(value, Tensor):
            return value
        node = self.nodes.get(id(value))
        if node is None:
            self.alive.append(value)
            return value
        return node

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func._opname in CONSTANT:
            return output
        own = _map(args, self.node_of), _map(kwargs, self.node_of)
        if not any(isinstance(v, Node) for v in _flat(own)):
            return output
        if isinstance(output, Tensor):
            self._keep(output, self._operation(func, *own, output))
        elif isinstance(output, list | tuple):
            whole = self._operation(func, *own, None)
            for i, entry in enumerate(output):
                if isinstance(entry, Tensor):
                    self._keep(entry, self._entry(whole, i))
        return output

    def _operation(self, func: Any, args: Any, kwargs: Any, output: Tensor | None) -> Node:
        name = func._opname
        first = args[0] if args else None
        if name in ("detach", "alias", "lift_fresh", "clone") and isinstance(first, Node):
            return first
        if name == "_to_copy" and isinstance(first, Node) and kwargs.get("dtype") == torch.float64:
            return first
        entries = _entries(first) if isinstance(first, Node) else None
        if entries is not None and name == "select" and args[1] == 0:
            return entries[args[2]]
        if entries is not None and name == "slice" and args[1] == 0:
            stack = torch.ops.aten.stack.default
            return self._operation(stack, (entries[slice(*args[2:5])],), {}, output)
        function = _functional(func)
        key = (str(function), _key(args), _key(kwargs))
        if key not in self.same:
            label = self._label(name, args)
            self.same[key] = self._node(name.removesuffix("_"), function, args, kwargs, label)
        return self.same[key]

    def _entry(self, whole: Node, i: int) -> Node:
        """Entry i of an operation with several results."""
        if whole.name == "unbind" and not any(whole.args[1:]):
            select = torch.ops.aten.select.int
            return self._operation(select, (whole.args[0], 0, i), {}, None)
        key = ("entry", whole.number, i)
        if key not in self.same:
            self.same[key] = self._node("entry", lambda values, k: values[k], (whole, i))
        return self.same[key]

    def _label(self, name: str, args: Any) -> str:
        """Names of coordinates, of the vector of them, and of the normal's entries."""
        names, space = self.coordinates.names, self.coordinates.space
        if name == "select" and isinstance(args[0], Node) and args[1] == 0:
            vector, i = args[0], args[2]
            if vector.name == POINT:
                return f"{names[i]}{vector.label}"
            if vector.name == NORMAL:
                return f"n_{space[i]}"
        if name == "stack" and all(isinstance(entry, Node) for entry in args[0]):
            labels = [entry.label for entry in args[0]]
            for place in {label.partition("(")[1] + label.partition("(")[2] for label in labels}:
                if labels == [f"{s}{place}" for s in space]:
                    return f"{self.coordinates.vector}{place}"
        return ""


def _functional(func: Any) -> Any:
    """The operation itself, not the one in place: a graph is run on numbers of its own."""
    if not func._opname.endswith("_"):
        return func
    packet = getattr(torch.ops.aten, func._opname.rstrip("_"), None)
    return getattr(packet, func._overloadname, func) if packet is not None else func


def _entries(node: Node) -> list[Node] | None:
    """a and b of ``stack([a, b])``: its entries and slices are known."""
    if node.function is None or node.name != "stack" or any(node.args[1:]):
        return None
    entries = list(node.args[0])
    return entries if all(isinstance(entry, Node) for entry in entries) else None


def _key(value: Any) -> Any:
    """What makes two arguments the same one."""
    if isinstance(value, list | tuple):
        return tuple(_key(entry) for entry in value)
    if isinstance(value, dict):
        return tuple((name, _key(entry)) for name, entry in value.items())
    if isinstance(value, Node):
        return ("node", value.number)
    if isinstance(value, Tensor):
        return (value.dtype, value.item()) if value.dim() == 0 else ("tensor", id(value))
    return type(value), repr(value)


class _Placeholders(Context):
    """Answers every slot with a leaf of the tracer."""

    def __init__(self, tracer: _Tracer, like: Tensor) -> None:
        self.tracer = tracer
        self.coordinates = tracer.coordinates
        self.like = like
        self.known: dict[LinearPart, Tensor] = {}

    def value(self, linear: LinearPart) -> Tensor:
        if linear not in self.known:
            value = torch.tensor(0.7 + 0.1 * len(self.known), dtype=self.like.dtype)
            self.known[linear] = self.tracer.leaf(value, "slot", "", linear)
        return self.known[linear]


@torch.no_grad()
def trace(term: Term, problem: Problem, points: PointSet) -> list[Equation]:
    """The equations of a term, from one call of its residual at the first of these points.

    Raises UserError where the residual does.
    """
    tracer = _Tracer(problem.coordinates)
    first = points[:1].to("cpu", torch.float64)
    normal = None if first.normals is None else first.normals[0].clone()
    if normal is not None:
        tracer.leaf(normal, NORMAL, "normal")
    point = tracer.leaf(first.coordinates[0].clone(), POINT, "")
    links = {name: tracer.leaf(x[0].clone(), POINT, f"({name})") for name, x in first.links.items()}
    values = {name: tracer.leaf(v[0].clone(), name, name) for name, v in first.values.items()}
    theta = [
        tracer.leaf(torch.tensor(p.initial, dtype=torch.float64), p.name, p.name)
        for p in problem.parameters
    ]
    at = At(problem.coordinates, point, normal, values, links)
    with tracer, bind(problem.parameters, theta):
        context = _Placeholders(tracer, point)
        return [_equation(e, tracer) for e in call(term, context, at, len(problem.fields))]


def _equation(entry: Any, tracer: _Tracer) -> Equation:
    linear = tuple(entry.linear.items()) if isinstance(entry, Form) else ()
    remainder = entry.remainder if isinstance(entry, Form) else entry
    if hasattr(remainder, "as_tensor"):
        remainder = remainder.as_tensor()
    node = tracer.node_of(remainder)
    return Equation(linear, node if isinstance(node, Node) else float(node))


def reachable(roots: Iterable[Any]) -> list[Node]:
    """All nodes that these depend on and they themselves, inputs first."""
    found: dict[int, Node] = {}
    pending = [root for root in roots if isinstance(root, Node)]
    while pending:
        node = pending.pop()
        if node.number not in found:
            found[node.number] = node
            pending += node.inputs
    return [found[i] for i in sorted(found)]


@torch.no_grad()
def evaluate(
    equations: list[Equation], derivatives: Mapping[Key, Tensor], values: Mapping[str, Tensor]
) -> list[float]:
    """The equations at one point, from numbers for D^α u_k and for the other leaves.

    ``values`` are by the name of the leaf: POINT followed by the link in brackets, if any, NORMAL,
    given values and Parameters by their own.
    """
    known: dict[int, Any] = {}

    def put(value: Any) -> Any:
        return known[value.number] if isinstance(value, Node) else value

    for node in reachable(e.remainder for e in equations):
        if node.function is not None:
            known[node.number] = node.function(*_map(node.args, put), **_map(node.kwargs, put))
        elif node.slot is not None:
            known[node.number] = sum(c * derivatives[key] for key, c in node.slot)
        else:
            known[node.number] = values[node.name + (node.label if node.name == POINT else "")]
    return [
        float(sum(c * float(derivatives[key]) for key, c in e.linear) + float(put(e.remainder)))
        for e in equations
    ]


def leaf_values(points: PointSet, i: int, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``values`` of ``evaluate`` at point i."""
    result = {POINT: points.coordinates[i], **theta}
    if points.normals is not None:
        result[NORMAL] = points.normals[i]
    result |= {f"{POINT}({name})": x[i] for name, x in points.links.items()}
    return result | {name: v[i] for name, v in points.values.items()}


def is_faithful(
    equations: list[Equation], residual: Residual, points: PointSet, tolerance: float = 1e-9
) -> bool:
    """Whether the graph gives the numbers that the residual gives, at random slots and points.

    It does not where a function leaves torch on the way, or does something else at every call.
    """
    generator = torch.Generator().manual_seed(0)
    keys = sorted({key for slot in residual.slots for key, _ in slot})
    index = {key: i for i, key in enumerate(keys)}
    numbers = torch.rand(len(points), len(keys), generator=generator, dtype=torch.float64) + 0.5
    z = torch.zeros(len(points), len(residual.slots), dtype=torch.float64)
    for i, slot in enumerate(residual.slots):
        for key, c in slot:
            z[:, i] += c * numbers[:, index[key]]
    theta = torch.tensor([p.initial for p in residual.parameters], dtype=torch.float64)
    named = {p.name: v for p, v in zip(residual.parameters, theta, strict=True)}
    expected = residual.value(z, theta, points, residual.remainder(points))
    found = torch.tensor(
        [
            evaluate(
                equations,
                {key: numbers[i, k] for key, k in index.items()},
                leaf_values(points, i, named),
            )
            for i in range(len(points))
        ],
        dtype=torch.float64,
    )
    rounding = tolerance * float(expected.nan_to_num(0.0).abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=rounding, equal_nan=True)
