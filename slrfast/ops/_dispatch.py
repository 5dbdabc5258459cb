"""Which implementation of an op runs: ``slrfast.backend(...)`` > ``SLRFAST_BACKEND`` > the op's own table.

Every op module declares one visible table with :func:`register`, device type -> backends in order of preference.
The choice is made inside the registered torch op (or, for an op that is plain torch so far, at the top of the public
function). It is made once and remembered; ``torch.compile`` sees a constant.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from slrfast import checks
from slrfast.errors import BackendUnavailable

NAMES = ("native", "triton", "cuda", "reference")

TABLES: dict[str, Mapping[str, tuple[str, ...]]] = {}
_forced: str | None = None
_chosen: dict[tuple[str, str, str | None], str] = {}


def register(op: str, **table: tuple[str, ...]) -> None:
    """Declare an op's backends, best first: ``register("motion", cpu=("native", "reference"), cuda=("triton",))``."""
    TABLES[op] = table


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend for every slrfast op inside the block (process-wide).

    Args:
        name: "native", "triton", "cuda" or "reference".
    Raises:
        ValueError: an unknown name. BackendUnavailable is raised by the op that cannot run, with the reason.

    >>> import slrfast
    >>> with slrfast.backend("reference"):
    ...     pass
    """
    global _forced
    checks.choice("backend", NAMES, name=name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def unavailable(name: str, device: str) -> str | None:
    """Why a backend cannot run on this device type on this machine, or None when it can."""
    if name == "reference":
        return None
    from slrfast.kernels import availability

    return availability(name, device)


def choose(op: str, device: str) -> str:
    """The backend that runs ``op`` on this device type; BackendUnavailable when a forced one cannot."""
    forced = _forced or os.environ.get("SLRFAST_BACKEND") or None
    return _chosen.get((op, device, forced)) or _decide(op, device, forced)


def _decide(op: str, device: str, forced: str | None) -> str:
    table = TABLES[op].get(device, ("reference",))
    if forced is not None:
        checks.choice("SLRFAST_BACKEND", NAMES, value=forced)
        reason = (
            f"{op} has no {forced} kernel for {device} tensors" if forced not in table else unavailable(forced, device)
        )
        if reason:
            raise BackendUnavailable(f"{op}: backend {forced!r} was forced but cannot run: {reason}")
        table = (forced,)
    skipped = []
    for name in table:
        reason = unavailable(name, device)
        if reason is None:
            break
        skipped.append(f"{name} cannot run ({reason})")
    else:
        raise BackendUnavailable(f"{op}: no backend can run on {device}: {'; '.join(skipped)}")
    if not torch.compiler.is_compiling():  # a traced call neither warns nor remembers; the next eager one does
        if skipped:
            warnings.warn(f"{op} on {device}: {'; '.join(skipped)}; using {name}", stacklevel=4)
        _chosen[op, device, forced] = name
    return name
