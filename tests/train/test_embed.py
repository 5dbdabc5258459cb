"""slrfast embed: the file holds what the network says of the clips; what cannot be is said in one sentence."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from slrfast.data import PoseDataset, PreprocessOptions, SyntheticSigns, load_pose, pack
from slrfast.systems import MASA
from slrfast.train import config
from slrfast.train.cli import main
from slrfast.train.config import RunError
from slrfast.train.embed import embed_command
from slrfast.train.finetune import open_encoder
from slrfast.train.scoring import encode_dataset, encode_frames


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with poses, clips of two signers, and a run of pretrain masa."""
    home = tmp_path_factory.mktemp("embed")
    SyntheticSigns(num_classes=3, clips_per_class=6, num_signers=2).save(home / "poses")
    words = f"pretrain masa --data {home}/poses --preset small --run {home}/run --system.epochs 1"
    assert main([*words.split(), "--system.batch_size", "16", "--train.seed", "3"]) == 0
    return home


def embedded(capsys, out, *words):
    """What the command says, and what its file holds."""
    capsys.readouterr()
    assert embed_command([*(str(word) for word in words), "--out", str(out), "--json"]) == 0
    with np.load(out, allow_pickle=False) as file:
        return json.loads(capsys.readouterr().out), dict(file)


def refused(*words):
    with pytest.raises(RunError) as error:
        embed_command([str(word) for word in words])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_clips_of_a_run(home, tmp_path, capsys):
    clips = PoseDataset(home / "poses")
    told, file = embedded(capsys, tmp_path / "f.npz", "--encoder", home / "run", "--data", home / "poses")
    truth = encode_dataset(MASA.from_pretrained(home / "run" / "model"), clips).numpy()
    np.testing.assert_array_equal(file.pop("features"), truth)
    assert truth.std(0).min() > 0  # clips differ
    assert {key: value.tolist() for key, value in file.items()} == {
        "names": clips.names,
        "labels": clips.labels,
        "class_names": clips.class_names,
        "groups": clips.groups,
        "splits": clips.splits,
    }
    assert (told["clips"], told["frames"], told["dim"]) == (18, None, truth.shape[1])
    assert told["bytes"] == (tmp_path / "f.npz").stat().st_size


def test_frames_of_a_run(home, tmp_path, capsys):
    clips = PoseDataset(home / "poses")
    words = ("--encoder", home / "run", "--data", home / "poses", "--frames")
    told, file = embedded(capsys, tmp_path / "f.npz", *words)
    system = MASA.from_pretrained(home / "run" / "model")
    rows, offsets = file["features"], file["offsets"]
    assert np.diff(offsets).tolist() == clips.lengths
    assert told["frames"] == len(rows) == sum(clips.lengths)
    with torch.no_grad(), system.evaluating():
        alone = system.frame_features(clips.batch([5]))[0].numpy()
    np.testing.assert_allclose(rows[offsets[5] : offsets[6]], alone, rtol=1e-4, atol=1e-5)
    # the clip's features are the frames' average
    means = np.stack([rows[a:b].mean(0) for a, b in zip(offsets[:-1], offsets[1:], strict=True)])
    np.testing.assert_allclose(means, encode_dataset(system, clips).numpy(), rtol=1e-3, atol=1e-4)


def test_frames_come_in_batches_of_any_size():
    system = open_encoder("masa:small", 0)
    clips = SyntheticSigns(num_classes=2, clips_per_class=4)
    whole, apart = (encode_frames(system, clips, batch_size=size) for size in (8, 3))
    assert torch.equal(whole.offsets, apart.offsets)
    torch.testing.assert_close(whole.rows, apart.rows, rtol=1e-4, atol=1e-5)
    assert not whole.rows.requires_grad and system.training


def test_a_preset_is_drawn_from_its_seed(home, tmp_path, capsys):
    def of(seed, name):
        words = ("--encoder", "stc:small", "--data", home / "poses", "--seed", seed)
        return embedded(capsys, tmp_path / name, *words)[1]["features"]

    first, again, other = of(0, "a.npz"), of(0, "b.npz"), of(1, "c.npz")
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_the_split_and_the_run_s_preprocessing_are_used(home, tmp_path, capsys):
    rows = [
        f"{path.relative_to(home / 'poses')},{'ab'[i % 2]}"
        for i, path in enumerate(sorted((home / "poses").rglob("*.npz")))
    ]
    (home / "poses" / "index.csv").write_text("path,split\n" + "\n".join(rows) + "\n")
    index = home / "poses" / "index.csv"
    words = (
        f"pretrain masa --data {index} --preset small --run {tmp_path}/run --system.epochs 1 --preprocess.max_frames 20"
    )
    assert main([*words.split(), "--system.batch_size", "16"]) == 0
    words = ("--encoder", tmp_path / "run", "--data", index, "--split", "b", "--frames")
    told, file = embedded(capsys, tmp_path / "f.npz", *words)
    index.unlink()
    assert told["clips"] == 9 and set(file["splits"].tolist()) == {"b"}
    assert np.diff(file["offsets"]).max() == 20


def test_an_encoder_that_was_fine_tuned(home, tmp_path, capsys):
    """Its clips are cut as those were that it was fine-tuned on."""
    words = f"finetune islr --encoder {home}/run --data {home}/poses --run {tmp_path}/run --task.epochs 1"
    assert main([*words.split(), "--task.batch_size", "4", "--preprocess.max_frames", "20"]) == 0
    words = ("--encoder", tmp_path / "run", "--data", home / "poses")
    features = embedded(capsys, tmp_path / "f.npz", *words)[1]["features"]
    clips = PoseDataset(home / "poses", options=PreprocessOptions(max_frames=20))
    tuned, before = (MASA.from_pretrained(each) for each in (tmp_path / "run" / "model" / "encoder", home / "run"))
    np.testing.assert_array_equal(features, encode_dataset(tuned, clips).numpy())
    assert not np.allclose(features, encode_dataset(before, clips).numpy())


def test_other_clips_are_cut_as_the_store_that_was_pretrained_on(home, tmp_path, capsys):
    pack(home / "poses", tmp_path / "store", options=PreprocessOptions(max_frames=20))
    words = f"pretrain masa --data {tmp_path}/store --preset small --run {tmp_path}/run --system.epochs 1"
    assert main([*words.split(), "--system.batch_size", "16"]) == 0
    assert config.read_yaml(tmp_path / "run" / "config.yaml")["preprocess"]["max_frames"] == 20
    assert main(["pretrain", "masa", "--resume", str(tmp_path / "run")]) == 0

    def of(data):
        return embedded(capsys, tmp_path / f"{data.name}.npz", "--encoder", tmp_path / "run", "--data", data)[1]

    np.testing.assert_array_equal(of(tmp_path / "store")["features"], of(home / "poses")["features"])


def test_frames_that_the_encoder_leaves_out_are_not_there():
    system = open_encoder("slp:small", 0)
    system.config = replace(system.config, max_frames=30)
    clips = SyntheticSigns(num_classes=2, clips_per_class=2, options=PreprocessOptions(layout=79))
    rows = encode_frames(system, clips, batch_size=3)
    assert rows.lengths.tolist() == [min(length, 30) for length in clips.lengths] != clips.lengths
    for place, frames in enumerate(rows.rows.split(rows.lengths.tolist())):
        torch.testing.assert_close(frames.mean(0), system.encode(clips.batch([place]))[0], rtol=1e-3, atol=1e-4)


def test_pictures_of_videos(home, tmp_path, capsys):
    av = pytest.importorskip("av")
    paths = sorted((home / "poses").rglob("*.npz"))[:3]
    for number, path in enumerate(paths):
        pose, video = (tmp_path / kind / "a" / path.name for kind in ("poses", "videos"))
        pose.parent.mkdir(parents=True, exist_ok=True)
        pose.write_bytes(path.read_bytes())
        if number == 2:
            continue  # a clip without a video is left out
        video.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(video.with_suffix(".mp4")), "w") as file:
            stream = file.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
            for _ in range(len(load_pose(path).xy)):
                picture = np.full((32, 32, 3), 90 * number, np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
    words = ("--encoder", "ccl:small", "--data", tmp_path / "poses")
    told, alone = embedded(capsys, tmp_path / "p.npz", *words)
    seen = embedded(capsys, tmp_path / "v.npz", *words, "--videos", tmp_path / "videos")[1]
    assert seen["names"].tolist() == alone["names"].tolist()[:2]
    pose = alone["features"].shape[1]
    assert seen["features"].shape[1] > pose == told["dim"]
    np.testing.assert_allclose(seen["features"][:, -pose:], alone["features"][:2], rtol=1e-4, atol=1e-5)


def test_an_existing_file_stands(home, tmp_path, capsys):
    out = tmp_path / "f.npz"
    out.write_text("mine")
    words = ("--encoder", "stc:small", "--data", home / "poses", "--out", out)
    assert refused(*words) == f"{out} exists; choose another --out, or use --overwrite"
    assert out.read_text() == "mine"
    assert embed_command([*(str(word) for word in words), "--overwrite"]) == 0
    assert "18 clips" in capsys.readouterr().out


def test_unusable_files_are_listed(home, tmp_path, capsys):
    folder = tmp_path / "poses" / "a"
    folder.mkdir(parents=True)
    for path in sorted((home / "poses").rglob("*.npz"))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    told, file = embedded(capsys, tmp_path / "f.npz", "--encoder", "stc:small", "--data", tmp_path / "poses")
    assert told["skipped_files"] == 1 and len(file["features"]) == 2
    listed = tmp_path / "f.npz-skipped.txt"
    assert "broken.npz" in listed.read_text()
    (tmp_path / "f.npz").unlink()
    words = ("--encoder", "stc:small", "--data", tmp_path / "poses", "--out", tmp_path / "f.npz")
    assert refused(*words) == f"{listed} exists; choose another --out, or use --overwrite"
    (folder / "broken.npz").unlink()
    assert embed_command([*map(str, words), "--overwrite"]) == 0
    assert not listed.exists()  # it told of a file that is not there any more


def test_names_that_are_no_text_are_kept(home, tmp_path, capsys):
    path = next((home / "poses").rglob("*.npz"))
    folder = tmp_path / "poses" / "a"
    folder.mkdir(parents=True)
    try:
        (folder / "clip\udcff.npz").write_bytes(path.read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system has no names that are not UTF-8")
    file = embedded(capsys, tmp_path / "f.npz", "--encoder", "stc:small", "--data", tmp_path / "poses")[1]
    assert "clip\udcff" in file["names"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--encoder stc:small --frames --out f.npz", "--frames: encoder must have features of single frames, got STC"),
        ("--encoder stc:small --videos v --out f.npz", "--videos v: read by ccl with pictures, not by this stc"),
        ("--encoder stc:small --out f.csv", "--out f.csv: must end in .npz"),
        ("--encoder stc:small --out missing/f.npz", "--out missing/f.npz: its folder does not exist"),
        ("--encoder stc:small --out .", "--out .: is a folder"),
        ("--encoder stc:small --out f.npz/", "--out f.npz/: is a folder"),
        ("--encoder stc:small --out /proc/f.npz", "--out /proc/f.npz: cannot be written"),
        ("--encoder stc:small --out f.npz --seed 9999999999999999999999", "embed: seed must be"),
        ("--encoder stc:large --out f.npz", "--encoder stc:large: stc has the presets paper, legacy, small"),
        ("--encoder nothing --out f.npz", "--encoder nothing is neither the folder of a run nor SYSTEM:PRESET"),
        ("--encoder slp:small --out f.npz --device cuda:99", "device 'cuda:99' was asked for"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "PoseDataset", None)  # clips are not even opened
    assert said in refused(*words.split(), "--data", "poses")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", ["", "--size 640x480"])
def test_a_config_that_was_edited(home, tmp_path, flags):
    shutil.copytree(home / "run", tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    values = config.read_yaml(path)
    path.write_text(config.as_yaml({**values, "preprocess": "hello"}))
    said = refused("--encoder", tmp_path / "run", "--data", home / "poses", "--out", tmp_path / "f.npz", *flags.split())
    assert "'preprocess'" in said and "a mapping of options" in said


def test_the_command_line_knows_it(home, tmp_path, capsys):
    assert main(["embed", "--encoder", "stc:small", "--data", "nowhere", "--out", str(tmp_path / "f.npz")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
