"""README's Python blocks run as they stand, and its commands exist."""

import re
from pathlib import Path

import pytest

from slrfast.train import cli

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block(code):
    exec(compile(code, "README.md", "exec"), {})


def test_commands_are_known(capsys):
    commands = set(re.findall(r"^slrfast (\w+)", TEXT, re.MULTILINE))
    cli.main([])
    usage = capsys.readouterr().out
    assert commands and all(re.search(rf"^  {command}\b", usage, re.MULTILINE) for command in commands)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links and [link for link in links if not (ROOT / link).exists()] == []
