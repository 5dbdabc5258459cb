"""``slrfast pack``, and stores where the other commands take --data."""

import json

import pytest
import torch

from slrfast.data import PoseDataset, PoseStore, PreprocessOptions, pack
from slrfast.errors import DatasetError
from slrfast.train import cli
from slrfast.train.config import RunError, TrainConfig, open_dataset
from slrfast.train.loading import load_batches
from slrfast.train.loop import pretrain
from slrfast.train.pack import pack_command
from slrfast.train.runs import RunFolder
from slrfast.train.scoring import encode_dataset


@pytest.fixture(scope="module")
def poses(signs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("poses")
    signs.save(folder)
    return folder


@pytest.fixture
def store(poses, tmp_path):
    return pack(poses, tmp_path / "store").path


def damage(store):
    data = bytearray((store / "xy.npy").read_bytes())
    data[200] ^= 1
    (store / "xy.npy").write_bytes(data)


class TestCommand:
    def test_packs_and_says_what(self, poses, tmp_path, capsys):
        (poses / "bad\n.npz").write_bytes(b"")
        try:
            assert pack_command([str(poses), str(tmp_path / "store"), "--workers", "1"]) == 0
        finally:
            (poses / "bad\n.npz").unlink()
        out = capsys.readouterr().out.splitlines()
        store = PoseStore(tmp_path / "store")
        size = sum(file.stat().st_size for file in store.path.iterdir())
        first = store.summary().splitlines()[0]
        assert first.startswith("36 clips, ") and out[0] == f"{store.path}: {first}, {size / 1e6:.1f} MB"
        assert out[1:3] == ["1 file skipped:", r"  bad\n.npz: is empty"]
        assert out[3] == f"next: slrfast pretrain stc --data {store.path}" and len(out) == 4

    def test_json(self, poses, tmp_path, capsys):
        out = tmp_path / "store"
        arguments = [str(poses), str(out), "--dtype", "float16", "--preprocess.max_frames", "20", "--json"]
        assert pack_command(arguments) == 0
        captured = capsys.readouterr()
        results = json.loads(captured.out)
        assert results.pop("seconds") > 0 and results.pop("bytes") > 10_000
        frames = PoseStore(out).metadata["frames"]
        assert results == {
            "store": str(out), "clips": 36, "frames": frames, "keypoints": 49, "dtype": "float16", "classes": 4,
            "groups": 0, "skipped_files": 0, "skipped": [],
        }  # fmt: skip
        assert "36 clips" in captured.err and "reading poses: 100%" in captured.err
        assert max(PoseStore(out).lengths) <= 20
        pack_command([str(out), str(tmp_path / "again"), "--json"])
        assert PoseStore(tmp_path / "again").options == PreprocessOptions(max_frames=20)

    def test_generated_clips(self, tmp_path, signs, capsys):
        assert pack_command(["synthetic", str(tmp_path / "store")]) == 0
        assert PoseDataset(tmp_path / "store").groups == signs.groups

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "(?i)source.*see slrfast pack --help"),
            (["nowhere", "out"], "nowhere: there is no such file or folder"),
            (["nowhere", "out", "--dtype", "int8"], "pack: dtype must be one of 'float32', 'float16', got 'int8'"),
            (["nowhere", "out", "--format", "bvh"], "pack: format must be one of 'auto'"),
            (["nowhere", "out", "--preprocess.max_frames", "0"], "PreprocessOptions: max_frames must be in"),
            (["nowhere", "out", "--workers", "-1"], "pack: workers must be in .0, 1024., got -1"),
        ],
    )
    def test_wrong_input(self, arguments, message):
        with pytest.raises((RunError, DatasetError), match=message):
            pack_command(arguments)

    def test_help_has_examples(self, capsys):
        with pytest.raises(SystemExit) as stop:
            pack_command(["--help"])
        assert not stop.value.code
        told = capsys.readouterr().out
        assert told.startswith("usage: slrfast pack SOURCE OUT [options]")
        assert "slrfast pack index.csv store/ --dtype float16 --workers 2" in told and "--group_column" in told

    def test_interrupted(self, poses, tmp_path, capsys, monkeypatch):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("slrfast.data.packing._Growing.finish", stop)
        out = tmp_path / "my store"
        assert pack_command([str(poses), str(out)]) == 130
        assert capsys.readouterr().out == f"stopped; the same command goes on: slrfast pack {poses} '{out}' ...\n"
        monkeypatch.undo()
        assert pack_command([str(poses), str(out)]) == 0 and len(PoseStore(out)) == 36


class TestStoresAsData:
    def test_training_on_a_store_is_training_on_its_files(self, tiny, poses, store, tmp_path):
        losses = []
        for name, data in (("files", PoseDataset(poses)), ("store", PoseDataset(store))):
            for workers in (0, 2):
                folder = RunFolder(tmp_path / f"{name}{workers}").create()
                pretrain(tiny(), data, TrainConfig(workers=workers), folder, progress=False)
                losses.append([record["loss"] for record in folder.read_metrics()])
        assert losses[0] == losses[1] == losses[2] == losses[3] and len(losses[0]) == 12

    def test_every_command_takes_a_store(self, store, tmp_path, capsys):
        run = str(tmp_path / "run")
        common = ["--data", str(store), "--preset", "small", "--system.epochs", "1"]
        assert cli.main(["pretrain", "tiny", "--run", run, *common]) == 0
        assert cli.main(["evaluate", "--run", run, "--data", str(store), "--folds", "2"]) == 0
        assert "36 clips of 4 classes" in capsys.readouterr().out
        assert cli.main(["evaluate", "--run", run, "--folds", "2"]) == 0
        assert "Pre-training drew on the same clips" in capsys.readouterr().out

    def test_encoding_a_store(self, tiny, poses, store):
        features = [
            encode_dataset(tiny(), data, [5, 0, 7], batch_size=2) for data in (PoseDataset(poses), PoseDataset(store))
        ]
        assert torch.equal(*features)

    def test_split_and_options(self, store):
        assert type(open_dataset(str(store))) is PoseStore
        with pytest.raises(DatasetError, match="no clip has the split 'train'; there are ''"):
            open_dataset(str(store), "train")
        with pytest.raises(
            DatasetError, match="was packed with max_frames 150, not 9; leave the option out or pack again"
        ):
            open_dataset(str(store), preprocess={"max_frames": 9})

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_damaged_clip_stops_training_with_one_sentence(self, store, tmp_path, capsys, workers):
        damage(store)
        arguments = ["--data", str(store), "--run", str(tmp_path / "run"), "--train.workers", str(workers)]
        assert cli.main(["pretrain", "tiny", *arguments]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"slrfast: {store}/xy.npy: clip 'sign00/000.npz' (frames 0 to ") and "checksum" in said

    def test_an_unfinished_store(self, store, capsys):
        (store / "slrfast-store.json").rename(store / "slrfast-journal.jsonl")
        assert cli.main(["pretrain", "tiny", "--data", str(store)]) == 2
        assert "is an unfinished store; run the same slrfast pack again" in capsys.readouterr().err

    def test_batches_of_other_data_sets(self, signs):
        class Plain(torch.utils.data.Dataset):
            def __len__(self):
                return len(signs)

            def __getitem__(self, i):
                return signs[i]

        for got, want in zip(load_batches(Plain(), [[1, 2], [5]]), load_batches(signs, [[1, 2], [5]]), strict=True):
            assert torch.equal(got.xy, want.xy) and torch.equal(got.index, want.index)
