"""A problem and its net as a run would take them, in words and formulas."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from pinnkfac.common.errors import abbreviated, counted
from pinnkfac.common.memory import GIB
from pinnkfac.config.options import GROUPS
from pinnkfac.config.pde_file import summary
from pinnkfac.domain import Box, Points, PointSet
from pinnkfac.inspection import notation
from pinnkfac.inspection.configured import ConfiguredPde
from pinnkfac.inspection.formulas import formulas
from pinnkfac.inspection.text import bold, formula, paragraph, table
from pinnkfac.inspection.tracing import is_faithful, trace
from pinnkfac.inspection.windows import windows_text
from pinnkfac.linearisation.system import CompiledTerm, TermPoints
from pinnkfac.problem import Problem
from pinnkfac.residual import Residual
from pinnkfac.run.assembly import Assembly, assemble


def describe(pde: ConfiguredPde, columns: int, *, full: bool = False) -> list[str]:
    """Lines about the problem, its terms, the net and the choices of a run; raises UserError where
    a run could not begin."""
    problem = pde.problem()
    parts = assemble(pde.config, problem)
    name, text = pde.file.name, summary(pde.file.path)[0] if pde.file.path else ""
    text = text or (pde.file.function.__doc__ or "").strip().partition("\n")[0]
    lines = paragraph(f"{name}: {text}".rstrip(": "), columns)
    lines[0] = lines[0].replace(name, bold(name), 1)
    lines += table(_facts(pde, problem), columns)
    for term, points in zip(parts.system.terms, parts.source.current, strict=True):
        lines += ["", *_term(term, points, problem, columns, full)]
    lines += ["", bold("Net and run"), *table(_run(pde, parts, full), columns)]
    return lines


def _facts(pde: ConfiguredPde, problem: Problem) -> list[tuple[str, str]]:
    signature = problem.signature
    rows = [
        ("file", pde.place),
        ("source", problem.source),
        ("arguments", ", ".join(f"pde.{k}={v}" for k, v in pde.arguments.items())),
        ("fields", ", ".join(signature.label(name) for name in problem.fields)),
        ("vectors", ", ".join(f"{n} = ({', '.join(c)})" for n, c in signature.vectors.items())),
        ("coordinates", "; ".join(ranges(problem.domain.bounds, signature.shown_units))),
        ("windows", windows_text(problem)),
        ("periodic in", ", ".join(signature.periodic)),
        ("unknown", ", ".join(f"{p.name}, at first {p.initial:g}" for p in problem.parameters)),
        ("exact solution", "given" if problem.solution else "not given: no errors are reported"),
    ]
    return [(name, value) for name, value in rows if value]


def ranges(box: Box, units: Any) -> list[str]:
    """Coordinates with their ranges: 't in [0, 1] s (time)', many alike as 'x1 … x9 in [0, 1]'."""

    def kind(name: str) -> tuple[bool, tuple[float, float], str]:
        return name == box.coordinates.time, box.ranges[name], units.get(name, "")

    result = []
    for (is_time, bounds, unit), names in itertools.groupby(box.ranges, kind):
        shown = f"[{', '.join(map(notation.number, bounds))}]{f' {unit}' if unit else ''}"
        result.append(f"{abbreviated(names)} in {shown}{' (time)' if is_time else ''}")
    return result


def _term(
    term: CompiledTerm, points: TermPoints, problem: Problem, columns: int, full: bool
) -> list[str]:
    residual, coordinates = term.residual, problem.coordinates
    name, where, weight = residual.term.name, residual.term.where, residual.term.weight
    drawn = "" if isinstance(where, Points) else f"{counted(len(points), 'point')}, "
    lines = [f"{bold(f'Term {name!r}')}: {drawn}{where}, weight {weight:g}"]
    lines += _equations(residual, points.points[:3], problem, columns, full)
    varying = residual.constant is None
    form = "nonlinear, or coefficients that vary" if varying else "affine, constant coefficients"
    rows = [("form", form)]
    listed = {"slots": [notation.slot(s, problem.fields, coordinates) for s in residual.slots]}
    for place, plan in zip(term.places, term.plans, strict=True):
        what = f"rows at {place}" if place else "rows"
        listed[what] = [notation.row(r, coordinates) for r in plan.rows]
    for what, texts in listed.items():
        most = len(texts) if full else 12
        rows.append((f"{what} ({len(texts)})", abbreviated(texts, most, 4, ",  ")))
    return [*lines, *table(rows, columns, "    ")]


def _equations(
    residual: Residual, points: PointSet, problem: Problem, columns: int, full: bool
) -> list[str]:
    """The equations, provided that what would be printed is what is solved."""
    few = points.to("cpu", torch.float64)
    traced = trace(residual, few)
    if not is_faithful(traced, few):
        return paragraph(
            f"{residual.equations} equation(s) that cannot be written down: the residual calls "
            "something that torch does not see, or differs from call to call",
            columns,
            "      ",
        )
    written = formulas(traced, problem, full=full)
    lines = [line for e in written.equations for line in formula(e, columns, "      ")]
    for i, (name, body) in enumerate(written.named):
        first, *rest = formula(f"{name} = {body}", columns, " " * 10)
        lines += [f"    where {first[10:]}" if i == 0 else first, *rest]
    abridged = [f"{name} has {operations} operations" for name, operations in written.omitted]
    if any("…" in line for line in lines):
        abridged.append("… are summands left out")
    return lines + [f"    where {what}: show --full writes them out" for what in abridged]


def _run(pde: ConfiguredPde, parts: Assembly, full: bool) -> list[tuple[str, str]]:
    system, points = parts.system, parts.source.current
    pairs = zip(system.terms, points, strict=True)
    needed = sum(term.bytes_per_point(system.layout.dense) * len(part) for term, part in pairs)
    size = f"{needed / 2**20:.3g} MiB" if needed < 1000 * 2**20 else f"{needed / GIB:.3g} GiB"
    kept = "" if needed <= system.memory else ": more than memory allows, so computed anew"
    rows = [
        ("layers", layers(system.net, points[0].points.coordinates[:2])),
        ("parameters", f"{system.layout.number}"),
        ("linearisation", f"{size}{kept}"),
    ]
    set_by_hand = {word.partition("=")[0].lstrip("+") for word in pde.overrides}
    for group in GROUPS:
        chosen = OmegaConf.select(pde.config, f"choices.{group}", default="custom")
        settings = _settings(OmegaConf.to_container(pde.config[group], resolve=True))
        shown = [f"{k}={v}" for k, v in settings if full or f"{group}.{k}" in set_by_hand]
        rows.append((group, f"{chosen}{': ' if shown else ''}{', '.join(shown)}"))
    return rows


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
        kind = "" if isinstance(module, nn.Linear) else type(module).__name__
        before, after = inputs[0].shape[-1], output.shape[-1]
        calls.append(kind if kind and before == after else f"→ {after} {kind}".rstrip())

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
