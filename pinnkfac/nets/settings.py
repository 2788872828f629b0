"""Nets as the configuration describes them: one dataclass a kind of net, with ``make``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import nn

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.common.memory import check_fits, making
from pinnkfac.common.settings import Count, Number, Positive, check
from pinnkfac.nets.embeddings import (
    FourierFeatures,
    InputScaling,
    OutputScaling,
    PeriodicEmbedding,
)
from pinnkfac.nets.features import FeatureSettings
from pinnkfac.nets.mlp import Mlp, embedded
from pinnkfac.problem.signature import Signature

AUTO = "auto"
"""An activation that is still to be chosen."""


class NetSettings(Protocol):
    """``make`` returns a net from coordinates [batch, coord] to fields [batch, field]."""

    def make(self, signature: Signature, seed: int) -> nn.Module:
        """The net with weights drawn from ``seed``, in float64 on the CPU."""
        ...


@dataclass(frozen=True)
class MlpSettings:
    """A multilayer perceptron behind the maps of the coordinates that are asked for, in the order
    scaling to [−1, 1], periodic embedding (of the coordinates in ``periodic`` and of those that the
    problem is periodic in), Fourier features."""

    widths: Sequence[Count] = (64, 64, 48, 48)
    """widths of the hidden layers"""
    activation: str = "auto"
    """tanh, sin, sigmoid, softplus, silu, gelu or exp; auto: sin where step=auto finds that waves
    fit the problem better, else tanh"""
    initialisation: str = "auto"
    """first weights: torch's, lecun (hidden ones of variance 1/inputs, three times larger, by which
    waves are learnt sooner), or auto: lecun for at most three coordinates"""
    residual: bool = False
    """a hidden layer adds its input to its output, where the widths agree"""
    input_scaling: bool = True
    """maps the domain to [−1, 1] first, so that units do not matter"""
    output_scaling: bool = True
    """fields are of order one in the net, so that their units do not matter: scales and offsets by
    Problem(scales=...), else by what conditions and sources ask for"""
    fourier_features: Number = 0
    """random Fourier features in front (an even number), for solutions with many scales; 0: none"""
    fourier_scale: Positive = 1.0
    """standard deviation of their frequencies"""
    periodic: Sequence[str] = ()
    """coordinates in which every field is periodic, beside those of Problem(periodic=...)"""
    harmonics: Count = 1
    """waves for each periodic coordinate"""
    features: FeatureSettings | None = None
    """random features that the net adds to: step=auto finds them at the start, and writes them here
    (see reading_a_run.md); null: none yet"""

    def make(self, signature: Signature, seed: int) -> Mlp:
        """Raises UserError for an unknown activation or coordinate, and for too large widths."""
        sizes = [len(signature.coordinates.names), *self.widths, len(signature.fields)]
        check_fits(8 * sum(a * b for a, b in pairwise(sizes)), "the weights", "net.widths")
        # nn.Linear draws from torch's global generator: seed it here, and leave it as it was.
        with making("the weights", "net.widths"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            embedding, features = self._embedding(signature), None
            if self.features is not None:
                inputs = embedded(len(signature.coordinates.names), embedding)
                features = self.features.make(inputs, len(signature.fields), seed)
                features.requires_grad_(False)
            return Mlp(
                len(signature.coordinates.names),
                len(signature.fields),
                list(self.widths),
                "tanh" if self.activation == AUTO else self.activation,
                embedding=embedding,
                residual=self.residual,
                initialisation=self.initialisation,
                output=OutputScaling(len(signature.fields)) if self.output_scaling else None,
                features=features,
                rest=1.0 if self.features is None else self.features.rest,
            )

    def _embedding(self, signature: Signature) -> list[nn.Module]:
        names, box = signature.coordinates.names, signature.domain.bounds
        for name in self.periodic:
            if name not in names:
                raise UserError(
                    f"net.periodic: unknown coordinate '{name}'. {suggest(name, names)}"
                )
        result: list[nn.Module] = []
        features = len(names)
        lengths = [b - a for a, b in zip(box.low, box.high, strict=True)]
        if self.input_scaling:
            result.append(InputScaling(box.low, box.high))
            lengths = [2.0] * len(names)
        wrapped = {*self.periodic, *signature.periodic}
        if wrapped:
            periods = [
                length if n in wrapped else None for n, length in zip(names, lengths, strict=True)
            ]
            periodic = PeriodicEmbedding(periods, self.harmonics)
            features = periodic.features
            result.append(periodic)
        if self.fourier_features % 2:
            raise UserError(
                f"net.fourier_features={self.fourier_features}: an even number (sin and cos), 0 "
                "for none"
            )
        if self.fourier_features:
            result.append(FourierFeatures(features, self.fourier_features, self.fourier_scale))
        return result


KINDS: tuple[type[NetSettings], ...] = (MlpSettings,)
"""The kinds of nets that a configuration may name."""


def stored_settings(values: Any) -> NetSettings:
    """The settings that the net node of a stored configuration describes, such as
    ``{"_target_": "pinnkfac.nets.MlpSettings", "widths": [32, 32]}``.

    Nothing is imported for it: ``_target_`` must name a settings class of ``pinnkfac.nets``.
    Raises UserError for anything else, and for values that the class refuses.
    """
    kinds = {kind.__name__: kind for kind in KINDS}
    if not isinstance(values, Mapping) or not isinstance(values.get("_target_"), str):
        raise UserError("net holds no '_target_': it must say which net the run trained")
    module, _, name = values["_target_"].rpartition(".")
    if f"{module}.".startswith("pinnkfac.nets.") and name in kinds:
        settings = {str(key): value for key, value in values.items() if key != "_target_"}
        if isinstance(settings.get("features"), Mapping):
            parts = {str(k): v for k, v in settings["features"].items() if k != "_target_"}
            check("net.features", FeatureSettings, parts)
            settings["features"] = FeatureSettings(**parts)
        check("net", kinds[name], settings)
        return kinds[name](**settings)
    raise UserError(
        f"net._target_={values['_target_']} is no net of pinnkfac, and is not loaded. "
        f"{suggest(values['_target_'], [f'pinnkfac.nets.{n}' for n in kinds])}"
    )
