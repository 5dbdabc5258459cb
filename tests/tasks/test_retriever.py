"""Fine-tuning for retrieval: what is contrasted, what is trained, what is refused."""

from dataclasses import replace

import pytest
import torch

from slrfast.data import PoseBatch
from slrfast.systems import STC
from slrfast.systems.slp import SLP, SLPConfig
from slrfast.systems.stc_config import STCConfig
from slrfast.tasks.retriever import Retriever, RetrieverConfig
from slrfast.tasks.row_sets import similarity_matrix
from tests.systems.test_slp import FakeText, seeded


def small(**changes):
    torch.manual_seed(0)
    encoder = SLP(SLPConfig.small(layers=1, tasks=("contrast",), **changes))
    encoder.text = FakeText(encoder.config.text_dim)
    return encoder


def clips(texts, seed=0):
    """Clips with these tokens."""
    batch = PoseBatch.random(len(texts), keypoints=79, min_frames=5, max_frames=12, seed=seed)
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(text, dtype=torch.int64) for text in texts], True)
    return replace(batch, tokens=tokens, token_lengths=torch.tensor([len(text) for text in texts]))


TEXTS = ([5, 6, 2], [7, 2], [5, 6, 2], [], [8, 9, 4, 2])


def test_equal_texts_of_a_batch_are_no_negatives():
    model = Retriever(RetrieverConfig.slp(temperature=0.1), small()).eval()
    batch = clips(TEXTS)
    encoder = model.encoder
    rows = [0, 1, 2, 4]
    sign = [part[rows] for part in encoder.encode_signs(batch)]
    text = encoder.encode_text(batch.tokens[rows], batch.token_lengths[rows])
    logits = encoder.similarity(type(text)(*sign), text) / 0.1
    forth = back = 0.0
    for i in range(4):
        others = [j for j in range(4) if j == i or {i, j} != {0, 2}]
        forth = forth - logits[i, others].log_softmax(0)[others.index(i)] / 4
        back = back - logits[others, i].log_softmax(0)[others.index(i)] / 4
    found = model.training_step(batch)
    torch.testing.assert_close(found["loss"], (forth + back) / 2)
    torch.testing.assert_close(found["temperature"], torch.tensor(0.1))


def test_without_equal_texts_it_is_the_contrast_of_pretraining():
    model = Retriever(RetrieverConfig.slp(), small()).eval()
    batch = clips([[5, 2], [], [6, 7, 2], [8, 2]])
    torch.testing.assert_close(model.training_step(batch)["loss"], model.encoder.training_step(batch)["contrast"])


def test_a_batch_without_texts_has_no_loss():
    model = Retriever(RetrieverConfig.slp(), small())
    loss = model.training_step(clips([[], []]))["loss"]
    loss.backward()
    assert loss == 0
    assert model.training_step(PoseBatch.random(2, keypoints=79))["loss"] == 0


def test_groups_of_the_optimizer():
    model = Retriever(RetrieverConfig.slp(encoder_rate=0.1), small())
    groups = model.optimizer().param_groups
    told = {id(p): (group["rate"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(told) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    encoder = model.encoder
    assert told[id(encoder.log_scale)] == (1.0, 0.0)
    assert told[id(encoder.text_projection.weight)] == told[id(encoder.sign_projection.bias)] == (1.0, 1e-3)
    assert {told[id(p)] for p in encoder.encoder.parameters()} == {(0.1, 1e-3)}


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_clips_and_texts_of_a_batch_find_each_other(rate):
    """Where the encoder is frozen the projections alone learn, and less."""
    model = Retriever(RetrieverConfig.slp(learning_rate=3e-3 if rate else 0.01, encoder_rate=rate), small())
    batch = clips(([5, 6, 2], [7, 2], [3, 2], [8, 9, 4, 2]))
    texts = [text[:length] for text, length in zip(batch.tokens, batch.token_lengths, strict=True)]
    model.train()
    before, optimizer = {k: v.clone() for k, v in model.state_dict().items()}, model.optimizer()
    losses = []
    for step in range(40):
        loss = model.training_step(batch, seeded(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_after_step()
        losses.append(loss.item())
    found = model.test([batch], texts)
    assert losses[-1] < losses[0] - 0.3 and found["t2v_r1"] >= 0.75
    assert rate == 0 or found["t2v_r1"] == found["v2t_r1"] == found["t2v_median_rank"] == 1
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k]) and "running" not in k}
    frozen = {k for k in moved if "projection" not in k and "log_scale" not in k}
    assert {"encoder.log_scale", "encoder.sign_projection.weight"} <= moved and bool(frozen) == (rate > 0)
    assert model.training


def test_rows_are_the_encoders_and_do_not_depend_on_batches():
    model = Retriever(RetrieverConfig.slp(), small()).train()
    whole = clips([[5, 2], [6, 7, 2], [8, 2]])
    together = model.sign_rows([whole])
    one = model.encoder.encode_signs(whole)
    assert torch.equal(together.rows, one.rows[one.present])
    texts = [torch.tensor([5, 2]), torch.tensor([6, 7, 2]), torch.tensor([8, 2])]
    torch.testing.assert_close(model.text_rows(texts, 2).rows, model.text_rows(texts, 9).rows)
    torch.testing.assert_close(together.rows.norm(dim=1), torch.ones(len(together.rows)))


def test_saved_and_built_again_it_scores_the_same(tmp_path):
    model = Retriever(RetrieverConfig.slp(), small())
    with torch.no_grad():
        model.encoder.log_scale.fill_(1.2345678)
    model.save_pretrained(tmp_path)
    encoder = SLP.from_pretrained(tmp_path / "encoder")
    again = Retriever(model.config, encoder, **model.extra())
    again.load_head(tmp_path)
    for (name, mine), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_coarse_similarity_is_compared_by_the_same_tiles():
    model = Retriever(RetrieverConfig.slp(), small(similarity="coarse")).eval()
    batch = clips([[5, 2], [6, 7, 2]])
    signs = model.sign_rows([batch])
    assert signs.lengths.tolist() == [1, 1]
    texts = [torch.tensor([5, 2]), torch.tensor([6, 7, 2])]
    words = model.text_rows(texts)
    text = model.encoder.encode_text(batch.tokens, batch.token_lengths)
    expected = model.encoder.similarity(model.encoder.encode_signs(batch), text)
    torch.testing.assert_close(similarity_matrix(signs, words), expected)


class TestRefused:
    @pytest.mark.parametrize(
        ("encoder", "got"),
        [
            (lambda: STC(STCConfig.small(frames=8, bank_size=16, neighbors=8)), "STC without pairs"),
            (lambda: SLP(SLPConfig.small(tasks=("reconstruction",))), "SLP without sign_projection"),
            (lambda: torch.nn.Linear(2, 2), "Linear without pairs"),
            (lambda: None, "NoneType without pairs"),
        ],
    )
    def test_another_encoder(self, encoder, got):
        with pytest.raises(TypeError) as error:
            Retriever(RetrieverConfig.slp(), encoder())
        rule = "Retriever: encoder must be an SLP that was pre-trained with 'contrast' in its tasks, got "
        assert str(error.value) == rule + got

    @pytest.mark.parametrize("temperature", [0, -1, float("nan"), 0.001])
    def test_temperature(self, temperature):
        with pytest.raises(ValueError, match=r"RetrieverConfig: temperature must be (finite and > 0|>= 0.01), got"):
            RetrieverConfig.slp(temperature=temperature)

    def test_no_text_encoder(self):
        encoder = small()
        encoder.text = None
        model = Retriever(RetrieverConfig.slp(), encoder)
        with pytest.raises(ValueError, match="text must be a text encoder for a batch with texts, got None"):
            model.training_step(clips([[5, 2]]))
        with pytest.raises(ValueError, match="text must be a text encoder"):
            model.text_rows([torch.tensor([5, 2])])

    def test_an_empty_text(self):
        model = Retriever(RetrieverConfig.slp(), small())
        with pytest.raises(ValueError, match="token_lengths must be >= 1, got 0"):
            model.text_rows([torch.tensor([5, 2]), torch.tensor([], dtype=torch.int64)])

    def test_clips_of_another_layout(self):
        model = Retriever(RetrieverConfig.slp(), small())
        with pytest.raises(ValueError, match="79"):
            model.training_step(PoseBatch.random(2))
