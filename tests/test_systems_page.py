"""docs/systems.md: its tables name settings with the values that the configs have."""

import ast
import dataclasses
import re

import pytest

from slrfast.systems import SYSTEMS
from tests.pages import ROOT, sections

TEXT = sections(ROOT / "docs" / "systems.md")[1]
TITLES = {"STC": "stc", "MASA": "masa", "CCL-SLR": "ccl", "SLP": "slp"}


def rows(title):
    """Setting -> its values, one a preset."""
    presets = [
        name.strip(" `.()") for name in re.search(r"^\| setting \|(.*)\| why \|$", TEXT[title], re.M)[1].split("|")
    ]
    found = {}
    for name, *cells in (re.findall(r"`([^`]+)`", line) for line in TEXT[title].splitlines() if line.startswith("| `")):
        found[name] = dict(zip(presets, map(ast.literal_eval, cells[: len(presets)]), strict=True))
    return presets, found


@pytest.mark.parametrize("title", TITLES)
def test_the_values_are_those_of_the_configs(title):
    config = SYSTEMS[TITLES[title]].Config
    presets, found = rows(title)
    assert presets == (["paper", "legacy"] if hasattr(config, "legacy") else ["paper"]) and found
    for preset in presets:
        made = getattr(config, preset)()
        assert {name: values[preset] for name, values in found.items()} == {name: getattr(made, name) for name in found}


@pytest.mark.parametrize("title", ["STC", "MASA"])
def test_every_difference_between_paper_and_code_is_in_the_table(title):
    config = SYSTEMS[TITLES[title]].Config
    paper, legacy = dataclasses.asdict(config.paper()), dataclasses.asdict(config.legacy())
    assert {name for name in paper if paper[name] != legacy[name]} <= rows(title)[1].keys()


def test_every_system_is_on_the_page():
    assert set(TITLES.values()) == set(SYSTEMS) and set(TITLES) == set(TEXT)
