"""Pictures of a run: the solution beside the exact one, and loss and error over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from pinnkfac.errors import UserError
from pinnkfac.residual import exact_solution
from pinnkfac.solution import Solution

RESOLUTION = 161


def plot_solution(solution: Solution, path: Path) -> None:
    """Fields in rows; solution, exact solution and difference in columns.

    One coordinate: lines. Two: maps, time on the horizontal axis. More: the slice through the
    middle of the domain along the first two coordinates of space, and the middle of time.
    """
    problem = solution.problem
    names = problem.coordinates.names
    shown = _shown_coordinates(solution)
    points, axes, note = _slice(solution, shown)
    values = solution(points).double().cpu().numpy()
    exact = None
    if problem.solution is not None:
        try:
            exact = exact_solution(problem, points).numpy()
        except UserError:  # not finite on the edge of the domain: the picture goes without it
            exact = None
    columns = 1 if exact is None else 3 if len(shown) == 2 else 2
    fields = problem.fields
    figure = Figure(figsize=(4.2 * columns, 3.4 * len(fields)), layout="constrained")
    grid = figure.subplots(len(fields), columns, squeeze=False)
    for k, field in enumerate(fields):
        own = values[:, k]
        reference = None if exact is None else exact[:, k]
        if len(shown) == 1:
            _lines(grid[k], axes[0], own, reference, names[shown[0]], field)
        else:
            labels = [names[i] for i in shown]
            _maps(figure, grid[k], axes, own, reference, labels, field)
    if note:
        figure.suptitle(note, fontsize=9)
    figure.savefig(path, dpi=110)


def _shown_coordinates(solution: Solution) -> list[int]:
    coordinates = solution.problem.coordinates
    names = coordinates.names
    if len(names) <= 2:
        order = [*([coordinates.time] if coordinates.time else []), *coordinates.space]
        return [names.index(n) for n in order]
    return [names.index(n) for n in coordinates.space[:2]]


def _slice(solution: Solution, shown: Sequence[int]) -> tuple[torch.Tensor, list[np.ndarray], str]:
    domain = solution.problem.domain
    names = solution.problem.coordinates.names
    low, high = np.array(domain.low), np.array(domain.high)
    axes = [np.linspace(low[i], high[i], RESOLUTION) for i in shown]
    mesh = np.meshgrid(*axes, indexing="ij")
    points = np.tile((low + high) / 2, (mesh[0].size, 1))
    for i, part in zip(shown, mesh, strict=True):
        points[:, i] = part.reshape(-1)
    fixed = [i for i in range(len(names)) if i not in shown]
    note = ""
    if fixed:
        parts = [f"{names[i]} = {points[0, i]:g}" for i in fixed[:4]]
        note = "slice at " + ", ".join(parts) + (", …" if len(fixed) > 4 else "")
    return torch.from_numpy(points), axes, note


def _lines(
    row: Any, x: np.ndarray, own: np.ndarray, exact: np.ndarray | None, name: str, field: str
) -> None:
    row[0].plot(x, own, color="#0072B2", label="solution")
    if exact is not None:
        row[0].plot(x, exact, "--", color="#E69F00", label="exact")
        row[1].plot(x, own - exact, color="#D55E00")
        row[1].set(xlabel=name, ylabel=f"{field} − exact", title="difference")
    row[0].set(xlabel=name, ylabel=field, title=field)
    row[0].legend()


def _maps(
    figure: Any,
    row: Any,
    axes: Sequence[np.ndarray],
    own: np.ndarray,
    exact: np.ndarray | None,
    labels: Sequence[str],
    field: str,
) -> None:
    shape = (len(axes[0]), len(axes[1]))
    panels = [(field, own, "viridis")]
    if exact is not None:
        panels += [(f"{field} exact", exact, "viridis"), ("difference", own - exact, "RdBu_r")]
    both = own if exact is None else np.concatenate([own, exact])
    for axis, (title, data, colours) in zip(row, panels, strict=True):
        limits = (float(both.min()), float(both.max()))
        if title == "difference":
            extreme = float(np.abs(data).max()) or 1.0
            limits = (-extreme, extreme)
        image = axis.pcolormesh(
            axes[0],
            axes[1],
            data.reshape(shape).T,
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            shading="gouraud",
            rasterized=True,
        )
        axis.set(xlabel=labels[0], ylabel=labels[1], title=title)
        figure.colorbar(image, ax=axis)


def plot_history(history: Sequence[Mapping[str, Any]], path: Path, name: str) -> None:
    """Unweighted losses by term and the relative L2 error over seconds."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    seconds = [r["seconds"] for r in history]
    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442"]
    for i, term in enumerate(history[0]["losses"] if history else ()):
        losses = [r["losses"][term] for r in history]
        axis.plot(seconds, losses, color=colours[i % 6], lw=1.2, label=f"loss: {term}")
    if history and history[0]["relative_l2_error"] is not None:
        errors = [r["relative_l2_error"] for r in history]
        axis.plot(seconds, errors, color="#D55E00", lw=2.2, label="relative L2 error")
    axis.set(xlabel="seconds", title=name)
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
