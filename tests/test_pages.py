"""The code on README and in docs/ works: Python runs, commands and their options exist, links lead somewhere.

A section's Python runs as one program, in an empty folder that holds what SURROUNDINGS puts there for the page.
"""

import contextlib
import functools
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import tomllib
import torch

from slrfast.data import PreprocessOptions, SyntheticSigns
from slrfast.data.text import tiny_text_encoder
from slrfast.systems import SYSTEMS
from slrfast.train import cli
from tests.data.extract import fake_detectors
from tests.data.test_isolated_lists import instance, wlasl
from tests.pages import PAGES, ROOT, commands, fences, head_code, languages, name_of, run, sections
from tests.test_graph_networks_page import published_checkpoint

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OTHERS = {"git", "cd", "python3.10", "python3.11", "mp/bin/pip", "mm/bin/pip", "nvidia-smi"}  # not ours to check


def poses_and_videos(folder):
    av = pytest.importorskip("av")
    signs = SyntheticSigns(2, 2, options=PreprocessOptions(layout=75))
    signs.save(folder / "poses")
    for clip in signs.clips:
        path = folder / "videos" / f"{clip.name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(120):
                picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    lines = ["name,text", *(f"{clip.name},ein Satz" for clip in signs.clips)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    tiny_text_encoder(folder / "mbart-large-50", ["ein Satz"])


def start_kit(folder):
    SyntheticSigns(2, 2).save(folder / "wlasl_poses")
    (folder / "start_kit").mkdir()
    names = ["sign00/000", "sign00/001", "sign01/000", *(f"gone{i}" for i in range(97))]
    splits = ["train", "val", *["test"] * 98]
    wlasl(folder / "start_kit", [
        {"gloss": name, "instances": [instance(name, split)]} for name, split in zip(names, splits, strict=True)
    ])  # fmt: skip


def checkpoint(folder):
    torch.save(published_checkpoint()[1], folder / "checkpoint.pt")


def detector(folder):
    """mp/bin/python, whose MediaPipe is a fake, and a fake video."""
    fake_detectors.install(folder / "fakes")
    python = folder / "mp" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/fakes exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    fake_detectors.video(folder / "signs.mp4")


SURROUNDINGS = {
    "docs/formats.md": lambda folder: (poses_and_videos(folder), start_kit(folder)),
    "docs/graph-networks.md": checkpoint,
    "docs/extraction.md": detector,
}


def programs():
    """(page, title) of every section with Python; of a page with none in its sections (page, None)."""
    found = []
    for page in PAGES:
        titles = [title for title, text in sections(page)[1].items() if fences(text, "python")]
        if titles or head_code(page):
            found += [(page, title) for title in titles or [None]]
    return found


@pytest.mark.parametrize(("page", "title"), programs(), ids=lambda value: getattr(value, "name", value))
def test_python(page, title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    SURROUNDINGS.get(name_of(page), lambda folder: None)(tmp_path)
    run(page, *(fences(sections(page)[1][title], "python") if title else ()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_checked(page):
    text = page.read_text()
    kinds = {kind for kind in languages(text) if not kind.startswith("{")}  # directives of the site's generator
    assert kinds <= {"python", "sh", "text"}
    assert len(re.findall("^```", text, re.MULTILINE)) == 2 * sum(len(fences(text, kind)) for kind in languages(text))
    assert not re.search(r"^ {4}(slrfast|pip|make|python|from|import) ", text, re.MULTILINE)  # unseen by the tests


@functools.cache
def help_of(*command):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main([*command, "--help"]) == 0, command
    return out.getvalue()


def check_slrfast(words):
    known = re.findall(r"^  ([\w-]+)", cli.USAGE.partition("examples:")[0], re.MULTILINE)
    if words == ["--version"]:
        return
    command, *rest = words
    assert command in known, f"slrfast {command} is no command"
    head = [command]
    if command == "pretrain":
        assert rest and rest[0] in SYSTEMS, f"slrfast pretrain {rest[:1]} is no system"
        head.append(rest.pop(0))
    elif command == "finetune" and rest and not rest[0].startswith("-"):
        head.append(rest.pop(0))
    text = help_of(*head)
    for word in rest:
        if word.startswith("-"):
            option = word.partition("=")[0]
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"slrfast {command} has no {option}"
    if "--print_config" in text and not {"--resume", "--config"} & set(rest):  # which take their values from a file
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main([*words, "--print_config"]) == 0, words  # the values, too


def check_command(line):
    words = shlex.split(line, comments=True)
    program, rest = words[0], words[1:]
    while "=" in program:  # of the environment
        program, *rest = rest
    if program == "slrfast":
        check_slrfast(rest)
    elif program == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
        assert set(rest) <= set(targets), line
    elif program == "pip":
        assert rest[0] == "install", line
        for extras in re.findall(r"\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), line
    elif program in ("python", ".venv/bin/python", "accelerate"):
        if "-m" in rest:
            assert importlib.util.find_spec(rest[rest.index("-m") + 1]), line
        else:
            assert any((ROOT / word).is_file() for word in rest), line
    elif program.startswith((".ci/", "benchmarks/")):
        assert (ROOT / program).is_file(), line
    else:
        assert program in OTHERS, f"{program} of {line!r} is unknown"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands(page):
    for line in commands(page):
        for part in line.split(" && "):
            check_command(part)


@pytest.mark.parametrize("line", [
    "slrfast pretrian stc", "slrfast pretrain sct", "slrfast pretrain stc --sytem.batch_size 3", "make tset",
    "slrfast pretrain stc --data x --preset tiny", "slrfast pretrain stc --data x --system.frames few",
    "pip install '.[tritn]'", "python examples/none.py", "python -m slrfast.none", "rm -rf /",
])  # fmt: skip
def test_what_does_not_exist_is_found(line):
    with pytest.raises(AssertionError):
        check_command(line)


@pytest.mark.slow
def test_the_commands_of_the_tour_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = SyntheticSigns(4, 8, 4)
    monkeypatch.setattr("slrfast.train.config.SyntheticSigns", lambda **_: few)
    for line in commands(ROOT / "docs" / "tour.md"):
        assert cli.main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert {"loss.png", "views.png", "embedding.png", "evaluation.png"} <= {p.name for p in Path("runs/tour").iterdir()}


def anchors(path):
    """What a git host names the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_has_been_found():
    assert {"README.md", "CONTRIBUTING.md", "docs/drop-in.md", "docs/formats.md"} <= set(map(name_of, PAGES))
    assert head_code(ROOT / "docs" / "drop-in.md").startswith("import copy")
