"""When points are exchanged: decisions from losses, as functions of a state that never changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from pinnkfac.points.settings import PointSettings

HEATED, HOT, HOTTEST = 3, 5, 10
"""What a step that fitted its own points only adds to the heat, of which every other takes 1; above
HOT, points are new in every step; the most."""


class Decision(Enum):
    """What becomes of the current points."""

    KEEP = auto()
    FIRST = auto()
    """New ones are drawn, which no residual says anything about."""
    DRAW = auto()
    """New ones are drawn."""
    CHECK = auto()
    """The loss is to be evaluated on unseen ones."""
    TAKE = auto()
    """The unseen ones come next."""
    REPLACE = auto()
    """The same, or more than these, as the net has begun to fit the current ones."""


@dataclass(frozen=True)
class Exchange:
    """The exchanges of points so far, and what the next ones depend on: ``drawn`` counts all draws,
    ``exchanged`` those because of ``gap``, ``taken`` is the first step on the current points.
    Checks are ``interval`` steps apart, and the next one comes at ``next_check``, or where the loss
    is a gap below that on the last ``unseen`` points. ``heat`` says how many of the last steps
    fitted their own points only."""

    drawn: int = 0
    taken: int = 0
    exchanged: int = 0
    interval: int = 1
    next_check: int = 1
    unseen: float = 0.0
    heat: int = 0

    def due(
        self, settings: PointSettings, step: int, loss: float, *, missing: bool = False
    ) -> Decision:
        """Before a step, where the last one reached that loss on its points; ``missing``: the
        current points are of other numbers than they should be."""
        scheduled = settings.every > 0 and step % settings.every == 0
        if self.drawn == 0 or (scheduled and step == 0):
            return Decision.FIRST
        if missing or scheduled or self._stale(settings, step):
            return Decision.DRAW
        if settings.gap is None:
            return Decision.KEEP
        below = self.unseen > settings.gap * loss
        return Decision.CHECK if below or step >= self.next_check else Decision.KEEP

    def guards(self, settings: PointSettings, *, few: bool) -> bool:
        """Whether a step is to be guarded by new points, which may come next: it can fit its own
        only where residuals are ``few`` beside parameters or points are often exchanged, and not
        where points stay, or are chosen without weights."""
        if not settings.faithful or settings.every > 1:
            return False
        if settings.every == 1:
            return True
        return settings.gap is not None and (few or self.interval == 1)

    def checked(
        self, settings: PointSettings, step: int, loss: float, unseen: float
    ) -> tuple[Exchange, Decision]:
        """After a check, by the losses reached on the current points and on unseen ones."""
        now = replace(self, unseen=unseen)
        if not _fitted(settings, loss, unseen):
            return now._next(settings, step, 2 * self.interval), Decision.KEEP
        now = replace(now, exchanged=self.exchanged + 1).renewed(step)
        return now._next(settings, step, max(1, self.interval // 2)), Decision.REPLACE

    def guarded(
        self, settings: PointSettings, step: int, loss: float, unseen: float
    ) -> tuple[Exchange, Decision]:
        """After a step that was guarded by unseen points, by the losses that it reached on its own
        and on those, which come next where it has fitted its own, or many of the last steps have.
        """
        now = replace(self, unseen=unseen)
        if settings.every or settings.gap is None:
            return now.renewed(step + 1), Decision.TAKE
        if _fitted(settings, loss, unseen):
            heat = min(self.heat + HEATED, HOTTEST)
            now = replace(now, heat=heat, exchanged=self.exchanged + 1).renewed(step + 1)
            return now._next(settings, step, 1), Decision.REPLACE
        now = replace(now, heat=max(0, self.heat - 1))
        if now.heat > HOT or self._stale(settings, step + 1):
            return now.renewed(step + 1), Decision.TAKE
        return now._next(settings, step, 2), Decision.KEEP

    def renewed(self, step: int) -> Exchange:
        """With other points from that step on."""
        return replace(self, drawn=self.drawn + 1, taken=step)

    def _stale(self, settings: PointSettings, step: int) -> bool:
        """Whether points were chosen by residuals that may be large elsewhere by now, or are the
        first ones, and nothing but checks says when they are to be new."""
        if settings.adaptive is None or not settings.faithful or settings.every:
            return False
        return step - self.taken >= settings.check

    def _next(self, settings: PointSettings, step: int, interval: int) -> Exchange:
        """With the next check so many steps later, or as many as there are at most."""
        interval = min(interval, settings.check)
        return replace(self, interval=interval, next_check=step + interval)


def _fitted(settings: PointSettings, loss: float, unseen: float) -> bool:
    """Whether a net fits its points instead of the equation."""
    return settings.gap is not None and unseen > settings.gap * loss
