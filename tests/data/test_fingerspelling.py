import os
import sys
from collections import Counter
from importlib.util import find_spec

import pytest

from slrfast.data import FORMATS, Fingerspelling
from slrfast.data import fingerspelling as module
from slrfast.errors import DatasetError

HEADER = "path,spoken_language,signed_language,start,end,words,glosses,priority"


@pytest.fixture
def corpus(tmp_path, make_pose):
    pytest.importorskip("pose_format")
    rows = [
        ("ase/a.pose", "ase", "A"),
        ("ase/b.pose", "ase", "B"),
        ("gsg/sch.pose", "gsg", "SCH"),
        ("gsg/ae.pose", "gsg", "Ä"),
        ("gsg/z.pose", "gsg", "Z"),
        ("gsg/lower.pose", "gsg", "z"),
        ("gsg/none.pose", "gsg", ""),
        ("ase/a.pose", "fsl", "A"),
        ("ase/b.pose", "fsl", "B"),
    ]
    for i, (path, _, _) in enumerate(rows):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        FORMATS["pose"].write(tmp_path / path, make_pose(frames=3, seed=i, layout="holistic", count=75))
    lines = [f"{path},xx,{language},0,100,w,{gloss},0" for path, language, gloss in rows]
    (tmp_path / "index.csv").write_text("\n".join([HEADER, *reversed(lines)]) + "\n", encoding="utf-8")
    return tmp_path


def test_files_count_once_for_the_language_of_their_folder(corpus):
    data = Fingerspelling(corpus)
    assert sorted(clip.name for clip in data) == [
        *("ase/a.pose", "ase/b.pose", "gsg/ae.pose", "gsg/lower.pose", "gsg/none.pose", "gsg/sch.pose", "gsg/z.pose")
    ]
    assert Counter(data.groups) == {"ase": 2, "gsg": 5}
    assert {clip.name: clip.label for clip in data if clip.label >= 0} == {
        "ase/a.pose": 0,
        "ase/b.pose": 1,
        "gsg/z.pose": 25,
    }
    assert sorted(data.labels[i] for i in data.letters()) == [0, 1, 25]
    assert "".join(data.class_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert data.summary().endswith("letters A-Z: 3 clips in 2 sign languages")


def test_the_folder_can_come_from_the_environment(corpus, monkeypatch):
    monkeypatch.setenv("SLRFAST_FINGERSPELLING", str(corpus))
    assert len(Fingerspelling()) == 7


def test_the_package_is_found_but_not_imported(corpus, tmp_path_factory, monkeypatch):
    site = tmp_path_factory.mktemp("site")
    package = site / "spoken_to_signed"
    (package / "assets").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "assets" / "fingerspelling_lexicon").symlink_to(corpus)
    monkeypatch.delenv("SLRFAST_FINGERSPELLING", raising=False)
    monkeypatch.syspath_prepend(str(site))
    assert len(Fingerspelling()) == 7
    assert "spoken_to_signed" not in sys.modules


def test_a_missing_corpus_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.delenv("SLRFAST_FINGERSPELLING", raising=False)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(DatasetError) as raised:
        Fingerspelling()
    assert str(raised.value) == "the fingerspelling clips are not installed: pip install 'slrfast[demo]'"
    with pytest.raises(DatasetError, match="there is no index.csv, so this is not the fingerspelling corpus"):
        Fingerspelling(tmp_path)


def test_the_real_corpus_has_600_clips_of_19_languages():
    pytest.importorskip("pose_format")
    if not os.environ.get("SLRFAST_FINGERSPELLING") and find_spec("spoken_to_signed") is None:
        pytest.skip("spoken-to-signed is not installed")
    data = Fingerspelling()
    assert len(data) == 600 and data.skipped == [] and len(set(data.groups)) == 19 and "fsl" not in data.groups
    letters = data.subset(data.letters())
    assert len(letters) == 410 and len(set(letters.groups)) == 16 and set(letters.labels) == set(range(26))
    assert len({(clip.name) for clip in data}) == 600
    assert min(clip.num_frames for clip in data) >= 5
