"""Networks made of operations that Taylor mode has rules for."""

from pinnkfac.nets.embeddings import (
    FourierFeatures,
    InputScaling,
    OutputScaling,
    PeriodicEmbedding,
    output_scaling,
)
from pinnkfac.nets.features import FeatureSettings, RandomFeatures
from pinnkfac.nets.layers import FixedLinear, Scale
from pinnkfac.nets.mlp import Mlp
from pinnkfac.nets.settings import MlpSettings, NetSettings
from pinnkfac.nets.window_rules import PiecewiseNet, TimeWindows, WindowField
from pinnkfac.taylor.activations import Activation
from pinnkfac.taylor.linear import affine_layer

__all__ = [
    "Activation",
    "FeatureSettings",
    "FixedLinear",
    "FourierFeatures",
    "InputScaling",
    "Mlp",
    "MlpSettings",
    "NetSettings",
    "OutputScaling",
    "PeriodicEmbedding",
    "PiecewiseNet",
    "RandomFeatures",
    "Scale",
    "TimeWindows",
    "WindowField",
    "affine_layer",
    "output_scaling",
]
