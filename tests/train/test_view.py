"""``slrfast view``: pictures of pose files."""

import json

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from slrfast.data import Pose, SyntheticSigns, load_pose, pack
from slrfast.data.formats import FORMATS
from slrfast.errors import PoseFileError
from slrfast.train.config import RunError
from slrfast.train.skeleton import draw_pose
from slrfast.train.view import view


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return SyntheticSigns(num_classes=1, clips_per_class=1).save(tmp_path_factory.mktemp("clips"), "npz")[0]


def pixels(**style):
    """One frame with the right index finger in sight, drawn."""
    xy, confidence = np.full((49, 2), 0.5, np.float32), np.zeros(49, np.float32)
    xy[5:9] = [[0.4, 0.6], [0.45, 0.55], [0.5, 0.45], [0.55, 0.4]]
    confidence[5:9] = (0.1, 0.4, 0.7, 1.0)
    figure = Figure(figsize=(2, 2), dpi=100)
    draw_pose(figure.add_axes((0, 0, 1, 1)), xy, confidence, **style)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_joints_are_coloured_by_confidence():
    by_finger, by_confidence = pixels(), pixels(by_confidence=True)
    yellow = (abs(by_confidence - [253, 231, 36]).sum(-1) < 30).sum()
    assert yellow > 3 and (abs(by_finger - [253, 231, 36]).sum(-1) < 30).sum() == 0


def test_motion_is_drawn_as_arrows_of_visible_joints():
    motion = np.zeros((49, 2), np.float32)
    motion[30] = 0.3  # not in sight
    assert (pixels(motion=motion) == pixels()).all()
    motion[5:9] = 0.2
    red = abs(pixels(motion=motion) - [179, 38, 30]).sum(-1) < 30
    assert red.sum() > 10


def test_masked_frames_are_shaded():
    assert (pixels(shaded=True)[60, 100] != pixels()[60, 100]).any()


def test_strip(file, tmp_path, capsys):
    assert view([str(file), "--out", str(tmp_path / "a.png"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["frames"] >= facts["frames_with_hands"] > facts["masked_frames"] >= 0
    assert 0 <= facts["right_seen"] <= 1 and facts["layout"] == "coco133" and facts["people"] == 1
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image.shape[1] > 1500 and image.std() > 0.05


def test_strip_of_many_frames_has_rows(file, tmp_path):
    for count in (4, 20):
        view([str(file), "--frames", str(count), "--out", str(tmp_path / f"{count}.png")])
    few, many = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in (4, 20))
    assert many.shape[0] > 2 * few.shape[0]


def test_animation(file, tmp_path):
    pose = load_pose(file)
    middle = slice(pose.num_frames // 2, pose.num_frames // 2 + 5)
    FORMATS["npz"].write(tmp_path / "a.npz", Pose(pose.xy[middle], pose.confidence[middle], size=pose.size))
    assert view([str(tmp_path / "a.npz"), "--out", str(tmp_path / "a.gif"), "--fps", "10", "--interval", "0"]) == 0
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 5 and gif.info["duration"] == 100


def test_default_name(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view([str(file)])
    assert (tmp_path / file.with_suffix(".png").name).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.jpg"], "--out must end in .png or .gif, got 'a.jpg'"),
        (["--frames", "0"], "--frames must be at least 1"),
        (["--fps", "0"], "--fps in"),
        (["--format", "odd"], "format must be 'auto' or one of"),
        (["--preprocess.min_visible", "99"], "min_visible must be"),
        (["--preprocess.layout", "133"], "layout 133 cannot be drawn"),
        (["--clip", "0"], "--clip names a clip of a packed store, and only of one"),
    ],
)
def test_wrong_options(file, arguments, message):
    with pytest.raises(RunError, match=message):
        view([str(file), *arguments])


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(PoseFileError, match="nothing.npz"):
        view([str(tmp_path / "nothing.npz")])


def test_too_long_for_an_animation(file, tmp_path, monkeypatch):
    monkeypatch.setattr("slrfast.train.view._MOST_FRAMES", 3)
    with pytest.raises(RunError, match="is too long, at most 3"):
        view([str(file), "--out", str(tmp_path / "a.gif")])
    assert not (tmp_path / "a.gif").exists()


def test_the_choice_of_masked_frames_follows_the_seed(file, tmp_path, capsys):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    view([str(file), "--out", str(tmp_path / "a.png")])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_clip_of_a_store(tmp_path, capsys):
    signs = SyntheticSigns(num_classes=2, clips_per_class=2)
    store = pack(signs, tmp_path / "store")
    pictures = []
    for clip in ("2", store.names[2]):
        out = tmp_path / "a.png"
        assert view([str(store.path), "--clip", clip, "--out", str(out), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["clip"] == store.names[2] and facts["frames_with_hands"] == store[2].num_frames
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    assert view([str(store.path), "--clip", "0", "--out", str(tmp_path / "a.gif")]) == 0
    for clip in ("4", "nobody", "-1"):
        with pytest.raises(RunError, match=f"store: has no clip '{clip}'; its 4 clips begin with"):
            view([str(store.path), f"--clip={clip}"])
    with pytest.raises(RunError, match="--clip names a clip of a packed store"):
        view([str(store.path)])


@pytest.mark.parametrize("keypoints", [75, 79])
def test_other_layouts_are_drawn_without_masks(tmp_path, monkeypatch, capsys, keypoints):
    monkeypatch.chdir(tmp_path)
    (path, *_) = SyntheticSigns(num_classes=1, clips_per_class=1).save(tmp_path / "signs")
    flags = ["--preprocess.layout", str(keypoints), "--frames", "2", "--json"]
    assert view([str(path), *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["masked_frames"] == 0 and facts["right_seen"] > 0.5 and (tmp_path / "000.png").stat().st_size > 10_000
