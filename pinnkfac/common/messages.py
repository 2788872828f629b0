"""What the user is told about an exception."""

from __future__ import annotations

from pinnkfac.common.errors import UserError
from pinnkfac.common.memory import GIB, available, is_shortage


def message_of(error: Exception) -> str:
    """One line, whatever went wrong."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if type(error).__module__.partition(".")[0] in ("omegaconf", "hydra"):
        return f"a setting cannot be read: {text[:300]}"
    if is_shortage(error):
        free = "" if "CUDA" in text else f" ({available() / GIB:.3g} GiB are free)"
        return f"memory has run out{free}: lower points.scale, net.widths or memory ({text[:160]})"
    return (
        f"unexpected {type(error).__name__}: {text[:300]}. This is a mistake in pinnkfac or in the "
        "PDE file; debug=true shows where it happened"
    )
