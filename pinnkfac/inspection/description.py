"""A problem and its net as a run would take them, in words and formulas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from pinnkfac.common.errors import counted
from pinnkfac.common.memory import GIB
from pinnkfac.config.options import GROUPS
from pinnkfac.domain import Box, Points
from pinnkfac.inspection import notation
from pinnkfac.inspection.formulas import formulas
from pinnkfac.inspection.given import Given
from pinnkfac.inspection.text import bold, formula, paragraph, table
from pinnkfac.inspection.tracing import is_faithful, trace
from pinnkfac.linearisation.system import CompiledTerm, TermPoints
from pinnkfac.problem import Problem
from pinnkfac.run.assembly import Assembly, assemble
from pinnkfac.taylor.plan import Plan

MOST_NAMES = 6
"""Names above which a list of rows or coordinates is abbreviated."""


def describe(given: Given, columns: int, *, full: bool = False) -> list[str]:
    """Lines about the problem, its terms, the net and the choices of a run.

    Raises UserError where a run could not begin.
    """
    problem = given.problem()
    parts = assemble(given.config, problem)
    lines = [*paragraph(f"{given.found.name}: {given.headline}".rstrip(": "), columns)]
    lines[0] = lines[0].replace(given.found.name, bold(given.found.name), 1)
    lines += table(_facts(given, problem), columns)
    for term, points in zip(parts.system.terms, parts.source.current, strict=True):
        lines += ["", *_term(term, points, problem, columns, full)]
    lines += ["", bold("Net and run"), *table(_run(given, parts, full), columns)]
    return lines


# -- the problem ---------------------------------------------------------------------------------
def _facts(given: Given, problem: Problem) -> list[tuple[str, str]]:
    signature = problem.signature
    rows = [
        ("file", given.place),
        ("source", problem.source),
        ("arguments", ", ".join(f"pde.{k}={v}" for k, v in given.arguments.items())),
        ("fields", ", ".join(signature.label(name) for name in problem.fields)),
        ("vectors", ", ".join(f"{n} = ({', '.join(c)})" for n, c in signature.vectors.items())),
        ("coordinates", "; ".join(ranges(problem.domain.bounds, signature.shown_units))),
        ("periodic in", ", ".join(signature.periodic)),
        ("unknown", ", ".join(f"{p.name}, at first {p.initial:g}" for p in problem.parameters)),
        ("exact solution", "given" if problem.solution else "not given: no errors are reported"),
    ]
    return [(name, value) for name, value in rows if value]


def ranges(box: Box, units: Any) -> list[str]:
    """Coordinates with their ranges: 't in [0, 1] s (time)', many alike as 'x1 … x9 in [0, 1]'."""
    time = box.coordinates.time
    groups: list[tuple[list[str], tuple[float, float], str]] = []
    for name, (low, high) in box.ranges.items():
        unit = units.get(name, "")
        alike = groups and groups[-1][0] != [time] and groups[-1][1:] == ((low, high), unit)
        if alike and name != time:
            groups[-1][0].append(name)
        else:
            groups.append(([name], (low, high), unit))
    result = []
    for names, (low, high), unit in groups:
        shown = f"[{notation.number(low)}, {notation.number(high)}]{f' {unit}' if unit else ''}"
        which = " (time)" if names == [time] else ""
        result.append(f"{abbreviated(names)} in {shown}{which}")
    return result


def abbreviated(names: Sequence[str]) -> str:
    """A list of names, its middle left out where there are many."""
    shown = list(names)
    if len(shown) > MOST_NAMES:
        shown = [*shown[:2], "…", shown[-1]]
    return ", ".join(shown)


# -- terms ---------------------------------------------------------------------------------------
def _term(
    term: CompiledTerm, own: TermPoints, problem: Problem, columns: int, full: bool
) -> list[str]:
    residual = term.residual
    name, where, weight = residual.term.name, residual.term.where, residual.term.weight
    drawn = "" if isinstance(where, Points) else f"{counted(len(own), 'point')}, "
    lines = [f"{bold(f'Term {name!r}')}: {drawn}{where}, weight {weight:g}"]
    lines += _equations(term, own, problem, columns, full)
    slots = [notation.slot(s, problem.fields, problem.coordinates) for s in residual.slots]
    affine = residual.constant is not None
    form = "affine, constant coefficients" if affine else "nonlinear, or coefficients that vary"
    rows = [("form", form), (f"slots ({len(slots)})", _list(slots, full))]
    for place, plan in zip(term.places, term.plans, strict=True):
        rows.append(_rows(plan, place, problem, full))
    return [*lines, *table(rows, columns, "    ")]


def _equations(
    term: CompiledTerm, own: TermPoints, problem: Problem, columns: int, full: bool
) -> list[str]:
    """The equations, provided that what would be printed is what is solved."""
    residual = term.residual
    few = own.points[:3].to("cpu", torch.float64)
    equations = trace(residual.term, problem, few)
    if not is_faithful(equations, residual, few):
        return paragraph(
            f"{residual.equations} equation(s) that cannot be written down: the residual calls "
            "something that torch does not see, or differs from call to call",
            columns,
            "      ",
        )
    found = formulas(equations, problem, full=full)
    lines = [line for e in found.equations for line in formula(e, columns, "      ")]
    for i, (name, body) in enumerate(found.named):
        first, *rest = formula(f"{name} = {body}", columns, " " * 10)
        lines += [f"    where {first[10:]}" if i == 0 else first, *rest]
    for name, operations in found.omitted:
        lines.append(f"    where {name} has {operations} operations: show --full writes them out")
    if any("…" in line for line in lines):
        lines.append("    where … are summands left out: show --full writes them out")
    return lines


def _rows(plan: Plan, place: str, problem: Problem, full: bool) -> tuple[str, str]:
    names = [notation.row(operator, problem.coordinates) for operator in plan.rows]
    return f"rows{f' at {place}' if place else ''} ({len(names)})", _list(names, full)


def _list(names: Sequence[str], full: bool) -> str:
    if full or len(names) <= 2 * MOST_NAMES:
        return ",  ".join(names)
    return f"{',  '.join(names[:4])},  …,  {names[-1]}"


# -- the net and the run -------------------------------------------------------------------------
def _run(given: Given, parts: Assembly, full: bool) -> list[tuple[str, str]]:
    system, points = parts.system, parts.source.current
    needed = sum(
        system.bytes_per_point(term) * len(own)
        for term, own in zip(system.terms, points, strict=True)
    )
    kept = "" if needed <= system.memory else ": more than memory allows, so computed anew"
    rows = [
        ("layers", layers(system.net, points[0].points.coordinates[:2])),
        ("parameters", f"{system.layout.number}"),
        ("linearisation", f"{_size(needed)}{kept}"),
    ]
    set_by_hand = {word.partition("=")[0].lstrip("+") for word in given.overrides}
    for group in GROUPS:
        chosen = OmegaConf.select(given.config, f"choices.{group}", default="custom")
        settings = _settings(OmegaConf.to_container(given.config[group], resolve=True))
        shown = [
            f"{key}={value}" for key, value in settings if full or f"{group}.{key}" in set_by_hand
        ]
        rows.append((group, f"{chosen}{': ' if shown else ''}{', '.join(shown)}"))
    return rows


def _size(number: float) -> str:
    mib = number / 2**20
    return f"{mib:.3g} MiB" if mib < 1000 else f"{number / GIB:.3g} GiB"


def _settings(values: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Keys and values of a node, inner ones with their whole key."""
    for key, value in (values or {}).items():
        if key == "_target_":
            continue
        if isinstance(value, dict) and "_target_" in value:
            inner = list(_settings(value, f"{prefix}{key}."))
            yield from inner or [(f"{prefix}{key}", value["_target_"].rpartition(".")[2])]
        elif value is None or isinstance(value, bool):
            yield f"{prefix}{key}", "null" if value is None else str(value).lower()
        else:
            yield f"{prefix}{key}", f"{value:g}" if isinstance(value, float) else str(value)


def layers(net: nn.Module, x: Tensor) -> str:
    """The modules of a net in the order of their calls, with sizes: '2 → 64 Tanh → 1'."""
    calls: list[str] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        kind, before, after = type(module).__name__, inputs[0].shape[-1], output.shape[-1]
        if isinstance(module, nn.Linear):
            calls.append(f"→ {after}")
        else:
            calls.append(kind if before == after else f"→ {after} {kind}")

    hooks = [module.register_forward_hook(note) for module in _atoms(net)]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return " ".join([f"{type(net).__name__}: {x.shape[-1]}", *calls])


def _atoms(net: nn.Module) -> Iterable[nn.Module]:
    """The modules that a net calls itself, through lists and sequences."""
    if isinstance(net, nn.Linear):
        yield net
    for child in net.children():
        if isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            yield from _atoms(child)
        else:
            yield child
