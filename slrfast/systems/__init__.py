"""The published systems, one file per paper."""

from slrfast.systems.stc import STC
from slrfast.systems.stc_config import STCConfig

SYSTEMS = {"stc": STC}

__all__ = ["STC", "SYSTEMS", "STCConfig"]
