"""Reading a packed store: the same clips, without copies, in any process; and every way in which it can be broken."""

import json
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slrfast.data import ClipDataset, PoseBatch, PoseDataset, PoseStore, PreprocessOptions, SyntheticSigns, pack
from slrfast.data.store import CLIPS, FRAMES, INDEX, JOURNAL, METADATA, digest
from slrfast.errors import DatasetError

FILES = (METADATA, CLIPS, *INDEX, *FRAMES)


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=3, clips_per_class=4, num_signers=2)


@pytest.fixture(scope="module")
def packed(signs, tmp_path_factory):
    return pack(signs, tmp_path_factory.mktemp("store") / "signs")


@pytest.fixture
def copy(packed, tmp_path):
    """A store of one's own to break."""
    return shutil.copytree(packed.path, tmp_path / "copy")


def told(clip):
    return clip.label, clip.name, clip.group, clip.split, clip.index


def same_batch(got, want):
    for field in ("xy", "confidence", "offsets", "label", "index"):
        a, b = getattr(got, field), getattr(want, field)
        assert a.dtype == b.dtype and torch.equal(a, b), field


def test_a_store_holds_the_same_clips_bit_for_bit(signs, packed):
    assert isinstance(packed, PoseStore) and len(packed) == len(signs)
    for got, want in zip(packed, signs, strict=True):
        assert torch.equal(got.xy, want.xy) and torch.equal(got.confidence, want.confidence)
        assert told(got) == told(want)
    for what in ("names", "labels", "groups", "splits", "lengths", "class_names", "skipped", "notes", "options"):
        assert getattr(packed, what) == getattr(signs, what), what
    assert packed.summary() == signs.summary()
    assert [clip.name for clip in packed.clips] == packed.names
    assert told(packed[-1]) == told(signs[len(signs) - 1])


def test_metadata_say_where_the_clips_come_from(packed, signs):
    metadata = json.loads((packed.path / METADATA).read_text())
    assert metadata == packed.metadata
    assert metadata["source"] == "SyntheticSigns" and metadata["keypoints"] == 49 and metadata["dtype"] == "float32"
    assert metadata["clips"] == 12 and metadata["frames"] == sum(signs.lengths) and metadata["skipped"] == 0
    assert metadata["preprocess"]["hand_threshold"] == 0.4
    assert {file.name for file in packed.path.iterdir()} == set(FILES)


def test_any_numpy_reads_the_arrays(packed, signs):
    xy = np.load(packed.path / "xy.npy", mmap_mode="r", allow_pickle=False)
    assert np.array_equal(xy, torch.cat([clip.xy for clip in signs]).numpy())


def test_pose_dataset_opens_a_store(packed):
    data = PoseDataset(packed.path)
    assert type(data) is PoseStore and data.labels == packed.labels
    assert type(PoseDataset(str(packed.path), workers=2, progress=True)) is PoseStore


def test_half_precision_is_the_rounded_clip_and_a_float32_batch(signs, tmp_path):
    half = pack(signs, tmp_path / "half", dtype="float16")
    assert half[0].xy.dtype == torch.float16 and half.metadata["dtype"] == "float16"
    for got, want in zip(half, signs, strict=True):
        assert torch.equal(got.xy, want.xy.half()) and torch.equal(got.confidence, want.confidence.half())
    batch = half.batch([5, 2])
    assert batch.xy.dtype == batch.confidence.dtype == torch.float32
    same_batch(batch, PoseBatch.collate([half[5], half[2]]))
    inside = torch.cat([clip.xy[(clip.xy <= 1).all(-1)] for clip in signs])
    assert ((inside.half().float() - inside) * 256).abs().max() <= 0.0625


def test_batches_are_packed_as_collate_packs_clips(packed, signs):
    for indices in ([3, 0, 3, 11], [7], range(12), np.array([2, 9]), torch.tensor([1, 4]), [-1, 5]):
        want = PoseBatch.collate([signs[int(i)] for i in indices])
        same_batch(packed.batch(indices), want)
        same_batch(signs.batch(indices), want)
        same_batch(PoseBatch.collate(packed.__getitems__(indices)), want)
    for wrong in ([12], [-13], [0, 99]):
        with pytest.raises(IndexError):
            packed.batch(wrong)
    with pytest.raises(ValueError, match=r"PoseStore.batch: indices must name at least one clip, got 0"):
        packed.batch([])


def test_clips_are_views_of_the_mapped_files(packed):
    store = PoseStore(packed.path)
    clip = store[3]
    assert np.shares_memory(clip.xy.numpy(), store._contents.xy)
    assert np.shares_memory(clip.confidence.numpy(), store._contents.confidence)
    assert isinstance(store._contents.xy.base, np.memmap)
    before = (packed.path / "xy.npy").read_bytes()
    clip.xy.fill_(7)
    assert (packed.path / "xy.npy").read_bytes() == before
    assert not (packed[3].xy == 7).any()


def test_subsets_share_the_files_and_number_their_clips(packed, signs):
    subset = packed.subset(i for i in (7, 2, 5)).subset([2, 0])
    assert subset.labels == [signs[5].label, signs[7].label] and subset.class_names == signs.class_names
    assert [clip.index for clip in subset] == [0, 1] and subset.names == [signs[5].name, signs[7].name]
    assert subset._contents is packed._contents
    assert subset.lengths == [signs[5].num_frames, signs[7].num_frames] and subset.options == packed.options
    same_batch(subset.batch([1]), ClipDataset([signs[5], signs[7]]).batch([1]))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_open_the_files_themselves(packed, signs, start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {start}")
    order = [[4, 1, 2], [0, 11, 5], [3]]
    loader = DataLoader(
        packed.subset(range(11, -1, -1)),
        batch_sampler=order,
        collate_fn=PoseBatch.collate,
        num_workers=1,
        multiprocessing_context=start,
    )
    for indices, batch in zip(order, loader, strict=True):
        want = PoseBatch.collate([signs[11 - i] for i in indices])
        want.index = torch.tensor(indices)
        same_batch(batch, want)


def test_a_pickled_store_is_its_path(packed, copy):
    text = pickle.dumps(packed)
    assert len(text) < 1000
    again = pickle.loads(text)
    assert torch.equal(again[4].xy, packed[4].xy) and again._rows.shape == (12,)
    assert pickle.loads(pickle.dumps(packed.subset([5, 3]))).names == packed.subset([5, 3]).names
    mine = pickle.dumps(PoseStore(copy))
    shutil.rmtree(copy)
    pack(packed.subset([1, 2]), copy)
    with pytest.raises(DatasetError, match="copy: was packed again while it was in use"):
        pickle.loads(mine)


def test_a_split_is_chosen_on_reading(signs, tmp_path):
    from dataclasses import replace

    halves = [replace(clip, split="train" if i % 3 else "test") for i, clip in enumerate(signs)]
    store = pack(ClipDataset(halves, signs.class_names), tmp_path / "store")
    test = PoseDataset(store.path, split="test")
    assert test.names == signs.subset(range(0, 12, 3)).names and set(test.splits) == {"test"}
    assert len(PoseDataset(store.path)) == 12 and [clip.index for clip in test] == [0, 1, 2, 3]
    with pytest.raises(DatasetError, match="no clip has the split 'val'; there are 'test', 'train'"):
        PoseDataset(store.path, split="val")


def test_options_are_those_of_the_store(packed, signs, tmp_path):
    assert PoseStore(packed.path, options=PreprocessOptions()).options == PreprocessOptions()
    with pytest.raises(
        DatasetError, match="was packed with max_frames 150, not 90; leave the option out or pack again"
    ):
        PoseDataset(packed.path, options=PreprocessOptions(max_frames=90))
    options = PreprocessOptions(size=(640, 480))
    sized = pack(SyntheticSigns(1, 2, options=options), tmp_path / "sized")
    assert PoseStore(sized.path, options=options).options == options
    unknown = pack(ClipDataset(signs.clips[:2]), tmp_path / "unknown")
    assert PoseStore(unknown.path).options is None
    with pytest.raises(DatasetError, match="does not say how its clips were pre-processed; leave the options out"):
        PoseStore(unknown.path, options=PreprocessOptions())


# ---- broken stores


def test_an_unfinished_or_foreign_folder(tmp_path, copy):
    (copy / METADATA).rename(copy / "away")
    with pytest.raises(DatasetError, match=f"copy: {METADATA} is missing, so this is no packed store"):
        PoseDataset(copy)
    (copy / JOURNAL).write_bytes(b"")
    with pytest.raises(
        DatasetError, match="copy: is an unfinished store; run the same slrfast pack again to finish it"
    ):
        PoseDataset(copy)
    (copy / METADATA).write_text('{"format": "somebody else\'s"}')
    with pytest.raises(DatasetError, match="was not written by slrfast pack"):
        PoseDataset(copy)
    with pytest.raises(DatasetError, match=f"nowhere: {METADATA} is missing"):
        PoseStore(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_missing_and_cut_files_are_named(copy, name):
    whole = (copy / name).read_bytes()
    (copy / name).unlink()
    with pytest.raises(DatasetError, match=f"{name}.*(cannot be read .No such file|is missing)"):
        PoseStore(copy)
    for left in (0, 5, len(whole) // 2, len(whole) - 2):
        (copy / name).write_bytes(whole[:left])
        with pytest.raises(DatasetError, match=str(copy)) as error:
            PoseStore(copy)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_are_cut_or_longer(copy, name):
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[:-4])
    with pytest.raises(
        DatasetError, match=rf"{name}: is cut short, it has {len(whole) - 4} bytes instead of {len(whole)}"
    ):
        PoseStore(copy)
    (copy / name).write_bytes(whole + b"\0")
    with pytest.raises(DatasetError, match=f"{name}: is altered, it has"):
        PoseStore(copy)


@pytest.mark.parametrize("name", FRAMES)
def test_a_damaged_clip_is_named_when_it_is_read_and_others_are_not_harmed(copy, name):
    store = PoseStore(copy)
    start = int(store._contents.offsets[4])
    data = bytearray((copy / name).read_bytes())
    size = (len(data) - 128) // store.metadata["frames"]
    data[128 + start * size + 9] ^= 1
    (copy / name).write_bytes(data)
    store, clip = PoseStore(copy), store.names[4]
    assert len(store.batch([0, 3, 5]).offsets) == 4
    message = (
        rf"{name}: clip '{clip}' \(frames {start} to \d+\) is damaged, its checksum is wrong; pack the source again"
    )
    for read in (lambda: store[4], lambda: store.batch([1, 4]), lambda: store.__getitems__([4])):
        with pytest.raises(DatasetError, match=message):
            read()


def test_checksums_are_compared_once_per_process(copy, monkeypatch):
    import zlib

    calls, crc32 = [], zlib.crc32
    monkeypatch.setattr("slrfast.data.store.zlib.crc32", lambda data: calls.append(1) or crc32(data))
    store = PoseStore(copy)
    store.batch([1, 2])
    store.subset([2])[0]
    assert len(calls) == 4
    assert len(store[3].xy) and len(calls) == 6


@pytest.mark.parametrize("name", (METADATA, CLIPS, *INDEX))
def test_one_altered_byte_of_the_index_is_noticed(copy, name):
    whole = (copy / name).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 25):
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        (copy / name).write_bytes(data)
        try:
            store = PoseStore(copy)
        except DatasetError as error:
            assert "\n" not in str(error)
        else:  # white space between two values, or a key that nobody reads
            assert name == METADATA and store.names


def rewrite(folder, change=None, **metadata):
    """Change a store and sign it again, as somebody with bad intentions would."""
    values = {**json.loads((folder / METADATA).read_text()), **metadata}
    if change:
        change(folder)
    values["digest"] = digest(folder, values)
    (folder / METADATA).write_text(json.dumps(values))


def array(name, values):
    return lambda folder: np.save(folder / name, values, allow_pickle=True)


def clips(**values):
    def change(folder):
        (folder / CLIPS).write_text(json.dumps({**json.loads((folder / CLIPS).read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (None, {"version": 2}, "is a store of version 2, this slrfast reads version 1; update slrfast or pack again"),
        (None, {"version": 0}, "is a store of version 0, this slrfast reads version 1; pack again"),
        (None, {"version": float("nan")}, "is a store of version nan, this slrfast reads version 1; pack again"),
        (None, {"preprocess": [["layout", 49]]}, "has pre-processing options of another kind .a list"),
        (None, {"preprocess": {"hand_threshold": 10**400}}, "has pre-processing options of another kind"),
        (None, {"clips": "12"}, "'clips' must be int, got '12'"),
        (None, {"clips": True}, "'clips' must be int, got True"),
        (None, {"clips": 0}, "says 0 clips of dtype float32"),
        (None, {"dtype": "object"}, "says 12 clips of dtype object"),
        (None, {"clips": 10**30}, "offsets.npy: must hold int64"),
        (None, {"frames": 10**15}, "offsets.npy: must rise from 0 to the 1000000000000000 frames"),
        (None, {"keypoints": 75}, r"xy.npy: must hold float32 \[\d+, 75, 2\], got float32"),
        (None, {"keypoints": 48}, "no layout has 48 keypoints"),
        (None, {"dtype": "float16"}, "xy.npy: must hold float16"),
        (None, {"class_names": [1]}, "'class_names' must be a list of texts"),
        (None, {"class_names": []}, r"label.npy: labels must be in \[-1, -1\]"),
        (None, {"preprocess": 3}, "has pre-processing options of another kind"),
        (None, {"preprocess": {"later": 3}}, "has pre-processing options of another kind"),
        (array("offsets.npy", np.zeros(13, np.int64)), {}, "offsets.npy: must rise from 0 to the"),
        (array("offsets.npy", np.r_[np.arange(12), 10**12]), {}, "offsets.npy: must rise from 0 to the"),
        (array("label.npy", np.full(12, 3)), {}, r"label.npy: labels must be in \[-1, 2\]"),
        (array("label.npy", np.full(12, -2)), {}, r"label.npy: labels must be in \[-1, 2\]"),
        (array("label.npy", np.zeros(11, np.int64)), {}, r"label.npy: must hold int64 \[12\], got int64 \[11\]"),
        (array("label.npy", np.array([print] * 12)), {}, r"label.npy: must hold int64 \[12\], got object \[12\]"),
        (clips(names=["a"] * 11), {}, "'names' must be one text for each of 12 clips, got 11"),
        (clips(groups=[1] * 12), {}, "'groups' must be a list of texts"),
        (clips(splits=None), {}, "'splits' must be a list of texts"),
        (clips(notes=[3]), {}, "'notes' must be a list of texts"),
        (clips(skipped=3), {}, "'skipped' must be a list of texts"),
        (lambda folder: (folder / CLIPS).write_text("[" * 10**5), {}, "clips.json: is damaged"),
        (lambda folder: (folder / CLIPS).write_text("[1]"), {}, "clips.json: is damaged .no mapping"),
        (lambda folder: (folder / "label.npy").write_bytes(b"PK\3\4" * 99), {}, "label.npy: is no .npy file"),
    ],
)  # fmt: skip
def test_hostile_stores_get_one_sentence(copy, change, metadata, message):
    rewrite(copy, change, **metadata)
    with pytest.raises(DatasetError, match=message) as error:
        PoseStore(copy)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_files_without_an_end_are_refused_at_once(copy, name):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (copy / name).unlink()
        make(copy / name)
        with pytest.raises(DatasetError, match=f"{name}.*(cannot be read .it is a pipe or a device|is missing)"):
            PoseStore(copy)


@pytest.mark.parametrize("name", FILES)
def test_enormous_files_are_refused_by_their_size(copy, name):
    with open(copy / name, "ab") as file:
        file.truncate(1 << 42)  # sparse: 4 TiB that take no room
    with pytest.raises(DatasetError, match=f"{name}: is (altered|damaged)[ ,(]+it has {1 << 42} bytes"):
        PoseStore(copy)


@pytest.mark.parametrize("name", (*FRAMES, *INDEX))
@pytest.mark.parametrize(
    "header",
    [b"(" * 9000, b"'''", b"-" * 9000 + b"1", b"{[]: 1}", b"\0", b"\xff" * 50, b"{'descr': [], 'shape': ()}"],
)
def test_hostile_headers_get_one_sentence(copy, name, header):
    for version, size in ((1, 2), (2, 4), (3, 4)):
        for length in (len(header), 256**size - 1):
            start = b"\x93NUMPY" + bytes((version, 0)) + length.to_bytes(size, "little")
            rewrite(copy, lambda folder: (folder / name).write_bytes(start + header))  # noqa: B023
            with pytest.raises(DatasetError, match=f"{name}: is no .npy file") as error:
                PoseStore(copy)
            assert "\n" not in str(error.value)
