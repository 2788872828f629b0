"""The main job on real input: default settings, a fixed number of steps, a bound on the error.

The bounds leave a factor of ten to what was measured; `experiments/accuracy.py` measures.
"""

from __future__ import annotations

import pytest

from pinnkfac import solve

CASES = {
    "poisson2d": (120, 1e-5),
    "heat1d": (150, 1e-5),
    "wave": (300, 1e-2),
    "burgers": (300, 3e-2),
    "allen_cahn": (300, 1e-1),
    "kdv": (200, 5e-3),
    "kovasznay": (150, 2e-5),
    "helmholtz": (350, 3e-3),
    "biharmonic": (240, 1e-5),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.ci] * (n in ("poisson2d", "heat1d"))) for n in CASES],
)
def test_default_settings_reach_a_small_error(name):
    steps, bound = CASES[name]
    result = solve(name, f"stop.steps={steps}", "stop.seconds=null")
    assert result.errors is not None
    assert result.errors.relative_l2 < bound
