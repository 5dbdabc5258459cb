"""The published systems, one file per paper."""

from slrfast.systems.ccl import CCL
from slrfast.systems.ccl_config import CCLConfig
from slrfast.systems.masa import MASA
from slrfast.systems.masa_config import MASAConfig
from slrfast.systems.slp import SLP
from slrfast.systems.slp_config import SLPConfig
from slrfast.systems.stc import STC
from slrfast.systems.stc_config import STCConfig

SYSTEMS: dict[str, type[CCL] | type[MASA] | type[SLP] | type[STC]] = {"ccl": CCL, "masa": MASA, "slp": SLP, "stc": STC}

__all__ = ["CCL", "MASA", "SLP", "STC", "SYSTEMS", "CCLConfig", "MASAConfig", "SLPConfig", "STCConfig"]
