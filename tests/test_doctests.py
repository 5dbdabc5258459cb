"""The examples in the docstrings run, on the CPU."""

import doctest
import importlib
from pathlib import Path

import pytest

import slrfast

ROOT = Path(slrfast.__file__).parent
MODULES = sorted(
    ".".join(("slrfast", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted and not failed


def test_every_op_has_an_example():
    public = {function.__module__ for function in map(slrfast.ops.__dict__.get, slrfast.ops.__all__)}
    assert public <= set(MODULES)
