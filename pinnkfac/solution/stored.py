"""The net and the coefficients of a stored run, without running any code of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from pinnkfac.common.errors import UserError, first_line
from pinnkfac.nets import NetSettings, OutputScaling, PiecewiseNet, TimeWindows
from pinnkfac.nets.settings import stored_settings
from pinnkfac.problem.signature import Signature
from pinnkfac.problem.windows import box_of, edges_of, time_of
from pinnkfac.store.run_folder import CHECKPOINTS, Which
from pinnkfac.store.stored_run import StoredRun

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def trained(
    run: StoredRun, which: Which, net: nn.Module | None
) -> tuple[nn.Module, dict[str, float]]:
    """The net of a checkpoint, on the CPU, and the coefficients of an inverse problem by name.
    ``net`` takes the place of the configured one, and its weights are replaced.

    Raises UserError, naming the file, where anything in it does not fit.
    """
    state, file = run.checkpoint(which), run.path / CHECKPOINTS[which]
    made = _net(run, state, file, net)
    names = run.signature.parameters
    return made, _coefficients(names, state.get("coefficients"), file) if names else {}


def _net(
    run: StoredRun, checkpoint: Mapping[str, Any], file: Path, net: nn.Module | None
) -> nn.Module:
    # config.yaml is that of the last start, which may have come after the checkpoint.
    config = checkpoint.get("config", OmegaConf.to_container(run.config, resolve=False))
    if not isinstance(config, dict):
        raise UserError(f"{run.path}: the checkpoint holds no configuration: it is damaged")
    state, dtype = checkpoint.get("net"), DTYPES.get(str(config.get("dtype")))
    if dtype is None:
        raise UserError(
            f"{file}: dtype={config.get('dtype')} is none of {', '.join(DTYPES)}: the file was "
            "changed, or comes from another run"
        )
    made = _configured(run, config.get("net"), checkpoint) if net is None else net
    made = made.to(device="cpu", dtype=dtype)
    whose = "the net in config.yaml" if net is None else f"the given net ({type(net).__name__})"
    if net is None and "output_scaling" not in (config.get("net") or {}):
        state = _with_outputs(made, state)
    problem = _mismatch(made.state_dict(), state)
    if problem:
        given = "Give the net that was trained, built as it was then"
        changed = "One of the two files was changed, or comes from another run"
        to_do = changed if net is None else given
        raise UserError(f"{file} does not fit {whose}: {problem}. {to_do}")
    assert isinstance(state, Mapping)
    made.load_state_dict(state)
    _check_outputs(run, made, whose)
    return made


def _configured(run: StoredRun, values: Any, checkpoint: Mapping[str, Any]) -> nn.Module:
    name = run.problem.get("net")
    if name is not None:
        raise UserError(
            f"{run.path}: the run trained a net of the user's own ({name}), which its folder "
            "does not describe: build it and give it, Solution.load(folder, net=...)"
        )
    config = run.path / "config.yaml"
    try:
        settings = stored_settings(values)
        if "windows" in checkpoint:
            return _of_windows(run.signature, settings, checkpoint["windows"])
        return settings.make(run.signature, 0)
    except UserError as error:
        raise UserError(f"{config}: {error}") from error
    except Exception as error:  # sizes that no machine holds, say
        raise UserError(
            f"{config}: the net that it describes cannot be made ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error


def _of_windows(signature: Signature, settings: NetSettings, stored: Any) -> nn.Module:
    """The net of a run through windows of time, as far as it had come; raises UserError for what
    cannot be."""
    names, time = signature.coordinates.names, time_of(signature.coordinates)
    try:
        edges, number = edges_of(stored["edges"], signature.domain), int(stored["number"])
        orders = tuple(int(order) for order in stored["orders"])
        if time is None or not 0 <= number < len(edges) - 1 or min(orders) < 1:
            raise ValueError(f"window {number} of {len(edges) - 1}")
        if len(orders) != len(signature.fields):
            raise ValueError(f"{len(orders)} orders")
    except Exception as error:  # whatever a damaged file may cause
        raise UserError(
            f"the windows of the checkpoint do not fit the problem ({first_line(error)}): one of "
            "the files was changed, or comes from another run"
        ) from error
    boxes = [box_of(signature.domain.bounds, edges, k) for k in range(number + 1)]
    nets = [settings.make(replace(signature, domain=box), 0) for box in boxes]
    return PiecewiseNet(nets, TimeWindows(edges, names.index(time), len(names), orders))


def _with_outputs(net: nn.Module, state: Any) -> Any:
    """The stored weights of an earlier version, which had no scales of fields, with fields as they
    are."""
    if not isinstance(state, Mapping):
        return state
    names = [name for name, module in net.named_modules() if isinstance(module, OutputScaling)]
    fresh = net.state_dict()
    missing = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    return {**{key: fresh[key] for key in sorted(missing)}, **state}


def _mismatch(weights: Mapping[str, Tensor], stored: Any) -> str:
    """What keeps stored weights from fitting, in words; '' where nothing does."""
    if not isinstance(stored, Mapping):
        return "it holds no weights under 'net'"
    missing = [name for name in weights if name not in stored]
    if missing:
        return f"it lacks '{missing[0]}'" + f" and {len(missing) - 1} more" * (len(missing) > 1)
    more = [name for name in stored if name not in weights]
    if more:
        return f"it has '{more[0]}', which the net has not"
    for name, tensor in weights.items():
        value = stored[name]
        if not isinstance(value, Tensor):
            return f"'{name}' is {type(value).__name__}, not a tensor"
        if value.shape != tensor.shape:
            return f"'{name}' has shape {tuple(value.shape)}, but the net {tuple(tensor.shape)}"
        if value.dtype != tensor.dtype:
            return f"'{name}' is {value.dtype}, but the run is in {tensor.dtype}"
    return ""


@torch.no_grad()
def _check_outputs(run: StoredRun, net: nn.Module, whose: str) -> None:
    box, fields = run.signature.domain.bounds, run.signature.fields
    point = next(net.parameters()).new_tensor([box.low, box.high])
    try:
        output = f"[batch, {net(point).shape[1]}]"
    except Exception as error:
        output = f"{type(error).__name__}: {error}"
    if output != f"[batch, {len(fields)}]":
        raise UserError(
            f"{run.path / 'problem.json'}: {whose} does not map {len(box.ranges)} coordinates "
            f"to {len(fields)} fields ({output})"
        )


def _coefficients(names: tuple[str, ...], values: Any, file: Path) -> dict[str, float]:
    good = isinstance(values, Tensor) and values.shape == (len(names),)
    if not good or not values.is_floating_point():
        what = type(values).__name__
        if isinstance(values, Tensor):
            what = f"{values.dtype} of shape {tuple(values.shape)}"
        raise UserError(
            f"{file}: 'coefficients' is {what}, but the problem has {len(names)} "
            f"({', '.join(names)}): the file comes from another run"
        )
    return dict(zip(names, values.tolist(), strict=True))
