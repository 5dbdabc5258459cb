"""SLP trains: better features than untrained, the same run after an interruption, one batch over two processes."""

import signal
from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from slrfast.data import ClipDataset, PoseBatch, PreprocessOptions, SyntheticSigns
from slrfast.data.text import tiny_text_encoder
from slrfast.systems.slp import SLP, SLPConfig
from slrfast.systems.slp_config import TASKS
from slrfast.tasks.metrics import top_k_accuracy
from slrfast.tasks.probe import knn_scores
from slrfast.train.config import TrainConfig
from slrfast.train.loop import pretrain
from slrfast.train.runs import RunFolder
from tests.systems.test_slp import FakeText, clips, double, seeded, system

# ---- processes -------------------------------------------------------------------------------------------------------

TEXTS = (6, 0, 3, 1, 2, 4)


def part(batch, first, last):
    """The clips from first to last of a batch, with texts as wide as theirs."""
    a, b = int(batch.offsets[first]), int(batch.offsets[last])
    lengths = batch.token_lengths[first:last]
    return PoseBatch(
        batch.xy[a:b], batch.confidence[a:b], batch.offsets[first : last + 1] - a, batch.label[first:last],
        batch.index[first:last], tokens=batch.tokens[first:last, : max(1, int(lengths.max()))], token_lengths=lengths,
    )  # fmt: skip


def contrast_and_gradients(model, batch):
    contrast = model.training_step(batch, seeded())["contrast"]
    contrast.backward()
    return contrast.detach(), [p.grad for p in model.parameters()]


CASES = {
    "unequal shares": (4, TEXTS, "fine"),
    "coarse": (3, TEXTS, "coarse"),
    "one process without texts": (2, (0, 0, 3, 1, 2, 4), "fine"),
    "no texts": (3, (0,), "fine"),
}


def _in_a_group(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for name, (cut, texts, similarity) in CASES.items():
        whole = double(clips(6, texts=texts))
        model = system(tasks=("contrast",), gather=True, similarity=similarity).double().eval()
        contrast, gradients = contrast_and_gradients(model, part(whole, *((0, cut), (cut, 6))[rank]))
        for value in (contrast, *gradients):
            torch.distributed.all_reduce(value)
        results[name] = contrast / 2, [gradient / 2 for gradient in gradients]
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gathered_negatives_are_those_of_one_joint_batch(tmp_path):
    """Averaged over the processes, as data-parallel training averages: value and all gradients."""
    torch.multiprocessing.spawn(_in_a_group, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, (_, texts, similarity) in CASES.items():
        model = system(tasks=("contrast",), similarity=similarity).double().eval()
        expected = contrast_and_gradients(model, double(clips(6, texts=texts)))
        assert (expected[0] > 0) == (sum(texts) > 0)
        for results in found:
            torch.testing.assert_close(results[name], expected, msg=name)


# ---- training --------------------------------------------------------------------------------------------------------


class Captioned(ClipDataset):
    """Clips whose text is a template with the class in the middle; every fifth has none."""

    def __init__(self, clips, class_names):
        told = [
            replace(clip, tokens=torch.tensor([1, 2, 10 + clip.label, 3, 4]) if i % 5 else None)
            for i, clip in enumerate(clips)
        ]
        super().__init__(told, class_names, [])


def signs(*sizes):
    return SyntheticSigns(*sizes, options=PreprocessOptions(layout=79))


def small(**changes):
    torch.manual_seed(0)
    model = SLP(SLPConfig.small(**changes))
    model.text = FakeText(model.config.text_dim)
    return model


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "better"), [(TASKS, 0.4), (("reconstruction",), 0.12)], ids=["both", "no texts"])
def test_training_helps_to_recognize_an_unseen_signer(tmp_path, one_thread, tasks, better):
    """kNN accuracy on a signer whose clips and texts training never saw; chance is 1/8."""
    data = signs(8, 12, 4)
    known, unseen = ([clip for clip in data.clips if (clip.group == "signer0") == new] for new in (False, True))
    model = small(tasks=tasks, epochs=12, batch_size=16, max_frames=16)

    def accuracy():
        features, queries = (model.encode(PoseBatch.collate(clips)) for clips in (known, unseen))
        scores = knn_scores(features, torch.tensor([clip.label for clip in known]), queries, 8, k=5)
        return top_k_accuracy(scores, torch.tensor([clip.label for clip in unseen]))

    before = accuracy()
    folder = RunFolder(tmp_path / "run").create()
    pretrain(model, Captioned(known, data.class_names), TrainConfig(), folder, progress=False)
    after = accuracy()
    assert after > before + better, (before, after)


def test_an_interrupted_run_is_the_same_bit_for_bit(tmp_path, one_thread):
    data = signs(4, 3, 3)
    data = Captioned(data.clips, data.class_names)

    def run(folder, stop=None, resume=False):
        model = small(batch_size=4, epochs=2, frame_dropout=0.2, transformer_dropout=0.1, max_frames=20)
        step, calls = model.training_step, []

        def training_step(batch, generator=None):
            calls.append(batch)
            if len(calls) == stop:
                signal.raise_signal(signal.SIGINT)
            return step(batch, generator)

        model.training_step = training_step
        return model, pretrain(model, data, TrainConfig(), folder, resume=resume, progress=False)

    whole, _ = run(RunFolder(tmp_path / "whole").create())
    folder = RunFolder(tmp_path / "parts").create()
    _, stopped = run(folder, stop=3)
    assert (stopped.stopped_by, stopped.step) == ("SIGINT", 3)
    resumed, result = run(folder, resume=True)
    assert result.step == 6
    for (name, mine), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_signs_find_their_sentences(tmp_path):
    """With a real text encoder: after a few steps every clip is most like its own sentence, and the other way round."""
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    sentences = [f"This word is {word}." for word in ("apple", "rain", "school", "mother", "river", "seven")]
    encoder = tiny_text_encoder(tmp_path / "encoder", sentences, cache=tmp_path / "cache")
    tokens = [encoder.tokenize(sentence, "en") for sentence in sentences]
    lengths = torch.tensor([len(one) for one in tokens])
    batch = PoseBatch.collate(signs(6, 1, 1).clips)
    batch = replace(batch, tokens=pad_sequence(tokens, batch_first=True), token_lengths=lengths)
    model = small(max_frames=12)
    model.text = encoder
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in small().parameters())
    before = encoder(batch.tokens, batch.token_lengths)
    optimizer = model.optimizer()
    for step in range(60):
        losses = model.training_step(batch, seeded(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        model.update_after_step()
    similarity = model.similarity(model.encode_signs(batch), model.encode_text(batch.tokens, batch.token_lengths))
    assert similarity.argmax(1).tolist() == similarity.argmax(0).tolist() == list(range(6))
    assert torch.equal(encoder(batch.tokens, batch.token_lengths), before)
