"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from pinnkfac.problem import Problem


class Verdict(Enum):
    """The value is the sign in front of a line."""

    PASSED = "✓"
    FAILED = "✗"
    HINT = "!"
    NOT_CHECKED = "–"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, and what was seen."""

    verdict: Verdict
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict.value} {self.subject}: {self.text}"


def passed(subject: str, text: str) -> Finding:
    return Finding(Verdict.PASSED, subject, text)


def failed(subject: str, text: object) -> Finding:
    """A failure; of a message that names its term already, the term is not named twice."""
    return Finding(Verdict.FAILED, subject, str(text).removeprefix(f"{subject}: "))


def hint(subject: str, text: str) -> Finding:
    return Finding(Verdict.HINT, subject, text)


def not_checked(subject: str, reason: str) -> Finding:
    return Finding(Verdict.NOT_CHECKED, subject, f"not checked ({reason})")


def place(problem: Problem, point: Tensor) -> str:
    """A point in words: 't = 0.31, x = 0.5'."""
    pairs = zip(problem.coordinates.names, point.tolist(), strict=True)
    texts = [f"{name} = {value:.4g}" for name, value in pairs]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:3], "…"])
