import csv
import json
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from slrfast.data import PoseBatch, SyntheticSigns, pack
from slrfast.data.class_names import read_class_names, read_class_set
from slrfast.data.isolated_lists import Listed, Listing, list_by_signer, read_lists, read_msasl, read_wlasl
from slrfast.data.isolated_presets import NMFS_CONFUSING, PRESETS, open_preset
from slrfast.data.isolated_split import split_dataset
from slrfast.errors import DatasetError


def instance(name, split="train", **more):
    return {"video_id": name, "split": split, "signer_id": 118, "frame_start": 1, "frame_end": -1} | more


def wlasl(folder, glosses):
    path = folder / "WLASL_v0.3.json"
    path.write_text(json.dumps(glosses))
    return path


BOOK = {
    "gloss": "book",
    "instances": [
        instance("69241", bbox=[385, 37, 885, 720]),
        instance("70212", "val", frame_start=2150, frame_end=2249, signer_id=-1),
    ],
}
DRINK = {"gloss": "drink", "instances": [instance("17734", "test")]}


def msasl(folder, **entries):
    classes = entries.pop("classes", ["hello", "nice", "teacher"])
    (folder / "MSASL_classes.json").write_text(json.dumps(classes))
    for split in ("train", "val", "test"):
        (folder / f"MSASL_{split}.json").write_text(json.dumps(entries.get(split, [sign(1)])))
    return folder


def sign(label, **more):
    known = {
        "clean_text": "match", "start_time": 1.101, "end_time": 3.67, "signer_id": 1, "signer": 44, "start": 33,
        "end": 110, "file": "ASL Vocabulary", "label": label, "height": 360.0, "width": 640.0, "fps": 29.97,
        "url": "https://www.youtube.com/watch?v=1AyT77LqJzQ", "box": [0.0, 0.25, 1.0, 0.75],
    }  # fmt: skip
    return known | more


def lists(folder, train, test, **more):
    folder.mkdir(exist_ok=True)
    for name, content in {"trainlist01.txt": train, "testlist01.txt": test, **more}.items():
        (folder / name).write_text(content, "utf-8")
    return folder


# --- WLASL -------------------------------------------------------------------------------------------------------


def test_wlasl_v03(tmp_path):
    listing = read_wlasl(wlasl(tmp_path, [BOOK, DRINK]))
    assert listing.class_names == ("book", "drink")
    assert listing.clips == (
        Listed("69241", 0, "book", "train", "118", (0, None), (385.0, 37.0, 885.0, 720.0)),
        Listed("70212", 0, "book", "val", "", (2149, 2249), None),
        Listed("17734", 1, "drink", "test", "118", (0, None), None),
    )
    assert [clip.name for clip in listing.first(1).clips] == ["69241", "70212"]
    assert listing.first(1).class_names == ("book",)


def test_wlasl_nslt(tmp_path):
    path = tmp_path / "nslt_100.json"
    content = {
        "05237": {"subset": "train", "action": [2, 1, 55]},
        "70244": {"subset": "test", "action": [0, 1146, 1241]},
        "1": {"subset": "val", "action": [1, 9, 3]},
    }
    path.write_text(json.dumps(content))
    clips = read_wlasl(path).clips
    assert [clip[:4] for clip in clips] == [
        ("05237", 2, "2", "train"),
        ("70244", 0, "0", "test"),
        ("1", 1, "1", "val"),
    ]
    assert [clip.frames for clip in clips] == [(0, 55), (1145, 1241), None]
    (tmp_path / "wlasl_class_list.txt").write_text("0\tbook\n1\tdrink\n2\tcomputer\n3\tbefore\n")
    listing = read_wlasl(path)
    assert listing.class_names == ("book", "drink", "computer") and listing.clips[0].gloss == "computer"
    (tmp_path / "two.txt").write_text("book\ndrink\n")
    with pytest.raises(DatasetError, match="the label 2 of '05237' is outside the list of 2 classes"):
        read_wlasl(path, tmp_path / "two.txt")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("3", "must be a list of glosses or a dict of clips, got int"),
        ("[]", "lists no clips"),
        ("{}", "lists no clips"),
        ('["book"]', "gloss 1 must have a text 'gloss', got None"),
        ('[{"gloss": ""}]', "gloss 1 must have a text 'gloss', got ''"),
        ('[{"gloss": "a", "instances": {}}]', "gloss 1 must have a list 'instances', got {}"),
        ('[{"gloss": "a", "instances": [3]}]', r"gloss 1 \(a\), instance 1, must have a text 'video_id', got None"),
        (json.dumps([{"gloss": "a", "instances": [instance("x", "dev")]}]), "'x' is in the split 'dev', not in"),
        (json.dumps([BOOK, BOOK]), "has glosses more than once: 'book'"),
        (json.dumps([BOOK, {**BOOK, "gloss": "b"}]), "lists clips more than once: '69241', '70212'"),
        (json.dumps([{"gloss": "a", "instances": [instance("x", bbox=[1, 2])]}]), "must have a box of four numbers"),
        (json.dumps([{"gloss": "a", "instances": [instance("x", frame_end="9")]}]), "whole numbers as frames, got 1"),
        ('{"a": {"subset": "train", "action": [0, 1]}}', r"the clip 'a' must have action = \[label, first frame"),
        ('{"a": {"subset": "train", "action": [true, 1, 2]}}', "the clip 'a' must have action"),
        ('{"a": {"subset": "train", "action": [-1, 1, 2]}}', "the label -1 of 'a' is outside the list of 0 classes"),
        ('{"a": {"subset": "train", "action": [99999999999, 1, 2]}}', "is outside the list of 1000000 classes"),
        ('{"a": {"action": [0, 1, 2]}}', "the clip 'a' must have a text 'subset', got None"),
        ('{"a": {"subset": "train", "action": [0, 1, 2]}, "a": 3}', "has entries more than once: 'a'"),
    ],
)  # fmt: skip
def test_files_that_are_no_wlasl(tmp_path, content, message):
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_wlasl(path)
    assert "list.json: " in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(DatasetError, match="nslt.json: cannot be read"):
        read_wlasl(tmp_path / "nslt.json")
    (tmp_path / "nslt.json").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(DatasetError, match="nslt.json: is no text in UTF-8"):
        read_wlasl(tmp_path / "nslt.json")


# --- MSASL -------------------------------------------------------------------------------------------------------


def test_msasl(tmp_path):
    msasl(tmp_path, train=[sign(2), sign(0, box=None, signer_id=None)], test=[sign(1, start=5, end=5)])
    listing = read_msasl(tmp_path)
    assert listing.clips == (
        Listed("train/00000", 2, "teacher", "train", "1", (33, 110), (160.0, 0.0, 480.0, 360.0)),
        Listed("train/00001", 0, "hello", "train", "", (33, 110), None),
        Listed("val/00000", 1, "nice", "val", "1", (33, 110), (160.0, 0.0, 480.0, 360.0)),
        Listed("test/00000", 1, "nice", "test", "1", None, (160.0, 0.0, 480.0, 360.0)),
    )
    named = read_msasl(tmp_path, clip_name="{video}_{start}_{end}_{label}_{split}")
    assert named.clips[0].name == "1AyT77LqJzQ_33_110_2_train"
    with pytest.raises(ValueError, match="clip_name must be filled in from split, index, video, .*, got '{name}'"):
        read_msasl(tmp_path, clip_name="{name}")
    with pytest.raises(DatasetError, match="lists clips more than once: '1AyT77LqJzQ'"):
        read_msasl(tmp_path, clip_name="{video}")


@pytest.mark.parametrize(
    "entries, message",
    [
        (dict(train={}), "MSASL_train.json: must be a list of clips, got dict"),
        (dict(val=[3]), "MSASL_val.json: clip 1 must have a whole number 'label', got None"),
        (dict(test=[sign("1")]), "MSASL_test.json: clip 1 must have a whole number 'label', got '1'"),
        (dict(test=[sign(1), sign(3)]), "clip 2 has the label 3, outside the list of 3 classes"),
        (dict(train=[sign(1, start=None)]), "clip 1 must have a whole number 'start', got None"),
        (dict(train=[sign(1, box=["a"] * 4)]), "clip 1 must have a box of four numbers"),
        (dict(classes={"a": 1}), "MSASL_classes.json: must be a list of class names"),
        (dict(classes=[1]), "MSASL_classes.json: must be a list of class names"),
        (dict(classes=[]), "MSASL_classes.json: names no classes"),
    ],
)
def test_files_that_are_no_msasl(tmp_path, entries, message):
    with pytest.raises(DatasetError, match=message):
        read_msasl(msasl(tmp_path, **entries))


def test_a_missing_file_of_msasl(tmp_path):
    (msasl(tmp_path) / "MSASL_test.json").unlink()
    with pytest.raises(DatasetError, match="MSASL_test.json: cannot be read"):
        read_msasl(tmp_path)


# --- lists of lines ----------------------------------------------------------------------------------------------


def test_lists_of_nmfs_and_slr500(tmp_path):
    train = "000/P01_01_00_0._color.mp4 0\n\n  a clip of mine.mp4   1 \n"
    lists(tmp_path / "traintestlist", train, "001/P50_01_01_4._color.mp4\r\n")
    listing = read_lists(tmp_path)
    assert listing.clips == (
        Listed("000/P01_01_00_0._color.mp4", 0, "0", "train", "P01"),
        Listed("a clip of mine.mp4", 1, "1", "train"),
        Listed("001/P50_01_01_4._color.mp4", 1, "1", "test", "P50"),
    )
    (tmp_path / "dictionary.txt").write_text("000001\t您好\n000000\t我 们\n", "utf-8")
    assert read_lists(tmp_path).class_names == ("我 们", "您好")
    with pytest.raises(DatasetError, match="dictionary.txt: names 2 classes, there are 500"):
        read_lists(tmp_path, 500)


def test_lists_with_commas(tmp_path):
    (tmp_path / "uni_trainlist01.csv").write_text("a/b,3\n")
    (tmp_path / "test_labels.csv").write_text("signer3_sample12,1\n")
    (tmp_path / "vallist01.txt").write_text("c 0\n")
    listing = read_lists(tmp_path, 5)
    assert [(clip.name, clip.label, clip.split, clip.signer) for clip in listing.clips] == [
        ("a/b", 3, "train", ""), ("c", 0, "val", ""), ("signer3_sample12", 1, "test", "signer3"),
    ]  # fmt: skip
    assert len(listing.class_names) == 5


@pytest.mark.parametrize(
    "train, test, message",
    [
        ("a.mp4\n", "b 1", "list01.txt: line 1 has no label: it must be 'name label' or 'label/name', got 'a.mp4'"),
        ("a 1\n\nx/b", "b 1", "line 2 has no label"),
        ("a 7\n", "b 1", "the label 7 of 'a' is outside the list of 3 classes"),
        ("a 1\na 2", "b 1", "lists clips more than once: 'a'"),
        ("a 1\n", "a 1", "lists clips more than once: 'a'"),
        ("", "", "lists no clips"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used(tmp_path, train, test, message):
    with pytest.raises(DatasetError, match=message):
        read_lists(lists(tmp_path / "x", train, test), 3)


def test_a_list_that_is_missing(tmp_path):
    (lists(tmp_path / "x", "a 1", "b 1") / "testlist01.txt").unlink()
    with pytest.raises(
        DatasetError, match="there is no list of test clips; it must be called one of testlist01.txt, uni"
    ):
        read_lists(tmp_path / "x")


def test_a_split_by_signer():
    names = ["000/P01_01_00_0.npz", "001/P02_01_01_0.npz", "001/P01_01_01_0.npz"]
    listing = list_by_signer(names, ["P02"], ["a", "b"])
    assert [(clip.split, clip.signer, clip.gloss) for clip in listing.clips] == [
        ("train", "P01", "a"), ("test", "P02", "b"), ("train", "P01", "b"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="test_signers must have clips, got 'P03'"):
        list_by_signer(names, ["P03"])
    with pytest.raises(DatasetError, match="'P01_1.npz' does not say label and signer"):
        list_by_signer(["P01_1.npz"], [])


# --- class lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, names",
    [
        ("book\ndrink\n", ("book", "drink")),
        ("1 drink a lot\n0 book", ("book", "drink a lot")),
        ("0,book\n1,book\n2,30\n", ("book (0)", "book (1)", "30")),
        ("1st\n2nd\n", ("1st", "2nd")),
    ],
)
def test_class_lists(tmp_path, content, names):
    (tmp_path / "a.txt").write_text(content)
    assert read_class_names(tmp_path / "a.txt") == names


@pytest.mark.parametrize("content", ["1 a\n2 b\n", "0 a\n0 b\n"])
def test_class_lists_that_leave_out_a_number(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DatasetError, match="a.txt: must number its 2 classes from 0 to 1"):
        read_class_names(tmp_path / "a.txt")


def test_a_set_of_classes(tmp_path):
    (tmp_path / "a.txt").write_text("2\nbook\n\n0\n")
    assert read_class_set(tmp_path / "a.txt", ["x", "book", "y"]) == [0, 1, 2]
    for line in ("3", "-1", "bok", "１"):
        (tmp_path / "a.txt").write_text(f"0\n{line}\n", "utf-8")
        with pytest.raises(DatasetError, match=rf"line 2 is '{line}', none of the 3 classes"):
            read_class_set(tmp_path / "a.txt", ["x", "book", "y"])


# --- presets -----------------------------------------------------------------------------------------------------


def test_presets_know_their_sizes():
    assert {name: preset.classes for name, preset in PRESETS.items() if preset.kind == "lists"} == {
        "nmfs": 1067, "slr500": 500,
    }  # fmt: skip
    assert sum(PRESETS["wlasl2000"].published.values()) == 21_083
    assert sum(PRESETS["msasl1000"].published.values()) == 25_513
    assert len(PRESETS["nmfs"].confusing) == 610 and list(NMFS_CONFUSING)[-1] == 609
    assert PRESETS["wlasl100"].train == ("train", "val") and PRESETS["slr500"].train == ("train",)


def test_opening_presets(tmp_path):
    glosses = [
        {"gloss": f"g{i}", "instances": [instance(f"{i:05d}", "test" if i % 2 else "train")]} for i in range(300)
    ]
    path = wlasl(tmp_path, glosses)
    assert len(open_preset("wlasl100", tmp_path).clips) == 100 and len(open_preset("wlasl300", path).clips) == 300
    with pytest.raises(DatasetError, match="has 300 classes, wlasl1000 needs 1000"):
        open_preset("wlasl1000", path)
    lists(tmp_path / "nmfs", "a 609\n", "b 1066\n")
    listing = open_preset("nmfs", tmp_path / "nmfs")
    assert len(listing.class_names) == 1067
    assert [note.split(": ")[1] for note in listing.notes] == [
        "lists 1 train clips, nmfs is published with 25608", "lists 1 test clips, nmfs is published with 6402",
    ]  # fmt: skip
    classes = [f"w{i}" for i in range(200)]
    msasl(tmp_path, classes=classes, train=[sign(5), sign(150)])
    assert [clip.label for clip in open_preset("msasl100", tmp_path, clip_name="{split}{index}").clips] == [5, 1, 1]
    assert open_preset("msasl200", tmp_path).clips[1].gloss == "w150"


def test_the_authors_own_lists_of_wlasl_and_msasl(tmp_path):
    for folder in (tmp_path / "traintestlist", tmp_path / "traintestlist" / "WLASL100"):
        lists(folder, "a.mp4 0\nc.mp4 99\n", "b.mp4 150\n" if folder.name == "traintestlist" else "b.mp4 7\n")
    assert [clip.label for clip in open_preset("wlasl100", tmp_path).clips] == [0, 99, 7]
    assert [clip.label for clip in open_preset("msasl100", tmp_path).clips] == [0, 99]


# --- splits ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=3, clips_per_class=3)


def listing(*clips, classes=("go", "stay", "eat")):
    listed = [Listed(name, label, classes[label], split, *more) for name, label, split, *more in clips]
    return Listing("list", tuple(listed), classes)


FIVE = (
    ("sign02/000", 0, "test", "S9"),
    ("sign00/001.mp4", 2, "train", "S1"),
    ("gone", 1, "train"),
    ("sign01/002", 1, "val", "S2"),
    ("lost", 1, "test"),
)


def test_clips_get_what_the_list_says(signs):
    split = split_dataset(signs, listing(*FIVE))
    assert split.train.names == ["sign00/001"] and split.train.labels == [2] and split.train.groups == ["S1"]
    assert split.val.names == ["sign01/002"] and split.test.names == ["sign02/000"]
    assert split.test.class_names == ["go", "stay", "eat"] and split.test.splits == ["test"]
    assert split.test[0].label == 0 and split.test[0].split == "test" and split.test[0].group == "S9"
    assert split.test.batch([0]).label.tolist() == [0]
    assert PoseBatch.collate([split.train[0]]).label.tolist() == [2]
    assert torch.equal(split.train[0].xy, signs[1].xy)
    assert split.train.skipped == [("gone", "the split file lists it, but no pose has this name")]
    assert split.test.skipped[0][0] == "lost" and split.val.skipped == []
    assert split.train.notes == ["6 of 9 poses are not in list", "1 of 2 train clips have no pose"]
    assert "1 file skipped:\n  gone: " in split.train.summary()


def test_papers_train_on_validation_clips_too(signs):
    split = split_dataset(signs, listing(*FIVE), train=("train", "val"), val=())
    assert split.train.names == ["sign00/001", "sign01/002"] and split.train.labels == [2, 1] and len(split.val) == 0
    assert split.val.labels == [] and split.val.skipped == []
    part = split.train.subset([1])
    assert part.labels == [1] and part.class_names == ["go", "stay", "eat"] and part.skipped == []


def test_a_part_is_loaded_by_torch(signs):
    part = split_dataset(signs, listing(*FIVE), train=("train", "val"), val=(), test="test").train
    (batch,) = DataLoader(part, 2, collate_fn=PoseBatch.collate)
    assert batch.label.tolist() == [2, 1] and batch.xy.equal(part.batch([0, 1]).xy)


def test_a_subset_has_the_first_classes(signs):
    more = (("sign00/000", 0, "train"), ("sign00/002", 2, "train"))
    split = split_dataset(signs, listing(*FIVE[:1], *more), subset=1)
    assert split.train.names == ["sign00/000"] and split.train.class_names == ["go"]
    assert split.train.groups == [signs.groups[0]]
    with pytest.raises(ValueError, match=r"Listing.first: classes must be in \[1, 3\], got 4"):
        split_dataset(signs, listing(*FIVE), subset=4)


def test_a_packed_store_and_names_cut_at_the_first_dot(signs, tmp_path):
    store = pack(signs, tmp_path / "store")
    slr = listing(("sign00/000._color.mp4", 1, "train", "P01"), ("sign02/002._color.mp4", 2, "test", "P02"))
    split = split_dataset(store, slr)
    assert split.train.names == ["sign00/000"] and split.test.batch([0]).label.tolist() == [2]
    two = [(f"sign00/000._{kind}.mp4", 1, "train") for kind in ("color", "depth")]
    both = listing(*two, ("sign02/002", 2, "test"))
    with pytest.raises(DatasetError, match="train part .* none of its 2 clips has a pose"):
        split_dataset(signs, both)


def test_parts_that_are_empty(signs):
    with pytest.raises(
        DatasetError, match=r"list: the test part \(split 'test'\) is empty, list has only 'train', 'val'"
    ):
        split_dataset(signs, listing(*FIVE[1:4]))
    with pytest.raises(DatasetError, match=r"the test part \(split 'test'\) is empty, none of its 1 clips has a pose"):
        split_dataset(signs, listing(*FIVE[1:]))
    with pytest.raises(DatasetError, match=r"the test part \(split none\) is empty"):
        split_dataset(signs, listing(*FIVE), test=())
    with pytest.raises(
        DatasetError, match="none of its clips has a pose; it lists 'gone', 'lost', poses are 'sign00/000'"
    ):
        split_dataset(signs, listing(FIVE[2], FIVE[4]))


def test_parts_that_cannot_be(signs):
    with pytest.raises(ValueError, match="split_dataset: train must share no split with another part, got 'val'"):
        split_dataset(signs, listing(*FIVE), train=("train", "val"))
    with pytest.raises(ValueError, match="split_dataset: test must be one of 'train', 'val', 'test', got 'dev'"):
        split_dataset(signs, listing(*FIVE), test=("dev",))


def test_two_poses_of_one_clip_are_refused(signs):
    twins = signs.subset([0, 1])
    twins.clips[0].name, twins.clips[1].name = "a/1.npz", "a/1.pkl"
    with pytest.raises(DatasetError, match="'a/1.npz' and 'a/1.pkl' both are the clip 'a/1' of list"):
        split_dataset(twins, listing(("a/1", 0, "train")))


def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text("utf-8")
    block = re.search(r"# Split files and score files.*?```python\n(.*?)```", page, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    SyntheticSigns(num_classes=2, clips_per_class=2).save(tmp_path / "wlasl_poses", "npz")
    names = [f"sign0{i // 2}/00{i % 2}" for i in range(4)] + [f"gone{i}" for i in range(96)]
    (tmp_path / "start_kit").mkdir()
    splits = ["train", "val", "test", "test"] * 25
    wlasl(tmp_path / "start_kit", [
        {"gloss": name, "instances": [instance(name, split)]} for name, split in zip(names, splits, strict=True)
    ])  # fmt: skip
    exec(compile(block, "formats.md", "exec"), {})
    said = capsys.readouterr().out
    assert "2 clips," in said and "48 of 50 test clips have no pose" in said and "48 files skipped" in said


def test_the_surviving_clips_of_wlasl(shared_data, tmp_path):
    folder = shared_data / "wlasl_hands"
    with open(folder / "wlasl_hands.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    told = {r["video_id"]: {"subset": r["split"], "action": [int(r["class"]), 1, int(r["n_frames"])]} for r in rows}
    (tmp_path / "nslt_2000.json").write_text(json.dumps(told))
    found = open_preset("wlasl100", tmp_path / "nslt_2000.json", class_list=folder / "wlasl_class_list.txt")
    wanted = {row["video_id"]: (row["gloss"], row["split"]) for row in rows if row["in_wlasl100"] == "1"}
    assert {clip.name: (clip.gloss, clip.split) for clip in found.clips} == wanted and len(wanted) > 800
    assert found.class_names[:3] == ("book", "drink", "computer") and len(found.class_names) == 100
