"""The site is made of every page, without a warning and without a network."""

import os
import re
import subprocess
import sys

import pytest

from slrfast import nn, ops
from tests.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-q", "-W", "--keep-going", "-d", folder / "trees", ROOT / "docs", folder / "html"]
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=os.environ | nowhere)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_in_it(site):
    pages = [p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")]
    linked = set(re.findall(r'href="([\w/-]+\.html)', (site / "index.html").read_text())) | {"index.html"}
    assert {str(page) for page in pages} <= linked


@pytest.mark.parametrize("room", [ops, nn], ids=["ops", "nn"])
def test_the_reference_has_every_public_name(site, room):
    name = room.__name__
    text = (site / "api" / f"{name.removeprefix('slrfast.')}.html").read_text()
    assert [public for public in room.__all__ if not re.search(rf'id="(module-)?{name}\.{public}"', text)] == []


def test_docstrings_stay_as_they_are_written(site):
    text = re.sub(r"<[^>]+>", "", (site / "api" / "ops.html").read_text())
    assert "keys[j] / |keys[j]| for j = 0..B-1" in text  # and not a substitution
    assert "\\" not in text
