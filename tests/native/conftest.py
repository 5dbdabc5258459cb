"""The compiled module by itself: loaded from its file, fed with NumPy arrays, no torch in the process.

SLRFAST_NATIVE_MODULE names another file to test, for example one built with SLRFAST_SANITIZE.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the modules that the tests of this folder share


@pytest.fixture(scope="session")
def library():
    named = os.environ.get("SLRFAST_NATIVE_MODULE")
    folders = importlib.util.find_spec("slrfast").submodule_search_locations if not named else []
    files = [Path(named)] if named else [file for folder in folders for file in Path(folder).glob("_C.*")]
    if not files:
        pytest.skip("slrfast._C is not built")
    spec = importlib.util.spec_from_file_location("slrfast._C", files[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
