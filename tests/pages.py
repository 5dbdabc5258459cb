"""The code on README and the pages of docs/: where it stands, and how it is run."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def fences(text, language):
    """The blocks of a language, in order."""
    return [code for found, code in _FENCE.findall(text) if found == language]


def languages(text):
    return {language for language, _ in _FENCE.findall(text)}


def sections(page):
    """What stands before the first ``##``, and title -> what stands under it."""
    head, *rest = page.read_text().split("\n## ")
    return head, dict(section.partition("\n")[::2] for section in rest)


def head_code(page):
    """The Python that every other block of the page begins with."""
    return "".join(fences(sections(page)[0], "python"))


def run(page, *blocks):
    """Run blocks as one program behind what the page begins with; returns its names."""
    names = {"__name__": name_of(page)}
    exec(compile(head_code(page) + "".join(blocks), name_of(page), "exec"), names)
    return names


def commands(page):
    """The lines of shell code, with continued lines joined."""
    lines = "".join(fences(page.read_text(), "sh")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
