"""The published systems, one file per paper."""

from slrfast.systems.masa import MASA
from slrfast.systems.masa_config import MASAConfig
from slrfast.systems.stc import STC
from slrfast.systems.stc_config import STCConfig

SYSTEMS: dict[str, type[MASA] | type[STC]] = {"masa": MASA, "stc": STC}

__all__ = ["MASA", "STC", "SYSTEMS", "MASAConfig", "STCConfig"]
