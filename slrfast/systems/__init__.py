"""The published systems, one file per paper."""

from slrfast.systems.stc import STC, STCConfig

SYSTEMS = {"stc": STC}

__all__ = ["STC", "SYSTEMS", "STCConfig"]
