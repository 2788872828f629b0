"""The suites: which problems, with which nets, for how long, and how good they should become."""

from __future__ import annotations

from dataclasses import dataclass

from pinnkfac.common.errors import UserError, suggest

SMALL, MEDIUM = "64", "64,64,48,48"
BIG, HUGE = "256,256,128,128", "768,768,512,512"
SHORT, LONG = 300.0, 600.0
"""Seconds of training for small and medium nets, and for big and huge ones."""


@dataclass(frozen=True)
class Case:
    """A bundled PDE with all that a comparison fixes: overrides (``settings``), the number of
    uniform points that errors are measured on, the ``seconds`` of training."""

    name: str
    pde: str
    seconds: float
    error_points: int
    settings: tuple[str, ...] = ()
    goals: tuple[tuple[float, float], ...] = ()
    """(seconds, error): an error to get below within that time; sorted by seconds."""

    def goal(self, seconds: float) -> float | None:
        """The goal of the shortest time that is no less than ``seconds``, else the last one."""
        within = [error for limit, error in self.goals if limit >= seconds]
        return within[0] if within else self.goals[-1][1] if self.goals else None


@dataclass(frozen=True)
class Suite:
    """Cases that are compared by one measure: ``rms_error`` or ``relative_l2_error``."""

    name: str
    text: str
    measure: str
    cases: tuple[Case, ...]

    def case(self, name: str) -> Case:
        """Raises UserError for a name that is none of the suite's."""
        cases = {case.name: case for case in self.cases}
        if name not in cases:
            raise UserError(
                f"--case {name}: suite {self.name} has no such case. {suggest(name, cases)}"
            )
        return cases[name]


def _paper(name: str, pde: str, widths: str, interior: int, *goals: tuple[float, float]) -> Case:
    """A case of arXiv:2405.15603 with its first weights; errors on 10 times the interior points."""
    seconds = LONG if widths in (BIG, HUGE) else SHORT
    net = (f"net.widths=[{widths}]", "net.initialisation=torch")
    return Case(name, pde, seconds, 10 * interior, net, goals)


PAPER = (
    _paper("poisson2d_small", "poisson2d", SMALL, 900, (SHORT, 6e-8)),
    _paper("poisson2d_medium", "poisson2d", MEDIUM, 900, (SHORT, 1e-8)),
    _paper("poisson2d_big", "poisson2d", BIG, 900, (LONG, 1e-7)),
    _paper("poisson5d_small", "poisson5d", SMALL, 3000, (SHORT, 5e-8)),
    _paper("poisson5d_medium", "poisson5d", MEDIUM, 3000, (SHORT, 2e-6), (3600.0, 2.6e-7)),
    _paper("poisson5d_big", "poisson5d", BIG, 3000, (LONG, 1e-5)),
    _paper("poisson10d_big", "poisson10d", BIG, 3000, (LONG, 1.2e-5)),
    # The paper tunes the points of every optimizer; these are those of the bundled file.
    _paper("poisson100d_huge", "poisson100d", HUGE, 200, (LONG, 3.6e-3)),
    _paper("heat1d_small", "heat1d", SMALL, 900, (SHORT, 2e-8)),
    _paper("heat1d_medium", "heat1d", MEDIUM, 900, (SHORT, 2e-8)),
    _paper("heat1d_big", "heat1d", BIG, 900, (LONG, 2e-8)),
    _paper("heat4d_small", "heat4d", SMALL, 3000),
    _paper("heat4d_medium", "heat4d", MEDIUM, 3000, (SHORT, 3e-6)),
    _paper("heat4d_big", "heat4d", BIG, 3000, (LONG, 1e-6)),
    _paper("logfokkerplanck9d_big", "log_fokker_planck9d", BIG, 3000, (LONG, 1.5e-3)),
)


PROBLEMS = tuple(
    Case(name, name, SHORT, 10_000, goals=((SHORT, goal),))
    for name, goal in {
        **{"helmholtz": 1e-8, "burgers": 1e-7, "kovasznay": 1e-8, "wave": 1e-6},
        **{"kdv": 1e-5, "biharmonic": 1e-7, "allen_cahn": 1e-5},
    }.items()
)

_TINY = ("net.widths=[16]", "points.scale=0.1")
SMOKE = tuple(
    Case(f"{pde}_tiny", pde, 2.0, 1000, _TINY, ((2.0, 1e-1),)) for pde in ("poisson2d", "heat1d")
)

SUITES = {
    suite.name: suite
    for suite in (
        Suite("paper", "the problems and nets of arXiv:2405.15603", "rms_error", PAPER),
        Suite("problems", "further PDEs, with the default net", "relative_l2_error", PROBLEMS),
        Suite("smoke", "two tiny cases, seconds in all", "relative_l2_error", SMOKE),
    )
}


def suite_of(name: str) -> Suite:
    """Raises UserError for a name that is no suite's."""
    if name not in SUITES:
        raise UserError(f"bench {name}: there is no such suite. {suggest(name, SUITES)}")
    return SUITES[name]
