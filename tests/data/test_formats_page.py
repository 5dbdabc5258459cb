"""docs/formats.md against the code: its tables are written here and must stand there word for word."""

import re

import pytest

from slrfast import graphs
from slrfast.data import FORMATS, PreprocessOptions, holistic
from slrfast.data.extract import BACKENDS
from slrfast.data.pose import LAYOUTS, joint_indices
from tests.pages import ROOT

PAGE = ROOT / "docs" / "formats.md"
FACE = {
    "jaw, right to left": (0, 17), "right brow": (17, 22), "left brow": (22, 27), "nose bridge to tip": (27, 31),
    "nose base": (31, 36), "right eye": (36, 42), "left eye": (42, 48), "outer lips": (48, 60), "inner lips": (60, 68),
}  # fmt: skip
MEDIAPIPE_NAMES = {f"{side}_big_toe": f"{side}_foot_index" for side in ("left", "right")}


def layout_table():
    rows = []
    for keypoints in graphs.LAYOUTS:
        layout = graphs.layout(keypoints)
        parts = ", ".join(f"{name} {part.start}–{part.stop - 1}" for name, part in layout.parts.items())
        rows.append(f"| {keypoints} | {parts} |")
    return rows


def body_table():
    rows = []
    for i, name in enumerate(graphs.layout(133).names[:23]):
        in_layouts = [str(k) for k in graphs.LAYOUTS if i in graphs.layout(k).indices]
        there = name in holistic.BODY
        landmark = f"{holistic.BODY.index(name)} {MEDIAPIPE_NAMES.get(name, name)}" if there else "— (missing)"
        rows.append(f"| {i} | {name} | {landmark} | {', '.join(in_layouts)} |")
    return rows


def hand_table():
    return [f"| {91 + i} | {112 + i} | {name} | {i} |" for i, name in enumerate(graphs.HAND_NAMES)]


def face_table():
    return [
        f"| {23 + start}–{22 + stop} | {part} | {', '.join(map(str, holistic.FACE_MESH[start:stop]))} |"
        for part, (start, stop) in FACE.items()
    ]


@pytest.mark.parametrize("table", [layout_table, body_table, hand_table, face_table])
def test_tables(table):
    assert "\n".join(table()) in PAGE.read_text()


def test_landmarks_without_a_partner_are_named():
    text = PAGE.read_text()
    unused = [name for name in holistic.BODY if name not in graphs.layout(133).names]
    assert f"no partner: {', '.join(unused)}" in " ".join(text.split())
    assert len(unused) == 12 and sum(joint_indices("holistic_face", 133) < 0) == 2


def test_every_format_layout_and_option_is_on_the_page():
    text = PAGE.read_text()
    for name in (*FORMATS, *LAYOUTS, "PYSKL", "units", "layout", "person", "drop_last"):
        assert f"`{name}`" in text or name in ("PYSKL",) and name in text, name
    for option in re.findall(r"`PreprocessOptions\((\w+)=", text):
        assert hasattr(PreprocessOptions(), option)


def test_the_recipe_of_the_error_is_the_one_of_the_page():
    page = " ".join((PAGE.parent / "extraction.md").read_text().replace("\\\n", " ").split())
    said = BACKENDS["mmpose"].missing("python")
    commands = said[said.index("(") + 1 : said.rindex(") and pass")].split(" && ")
    assert len(commands) == 4 and all(command in page for command in commands)
