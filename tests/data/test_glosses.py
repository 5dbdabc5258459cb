import pytest
from torch.utils.data import DataLoader

from slrfast.data import PoseBatch, SyntheticSigns, pack
from slrfast.data.continuous_lists import Sentence
from slrfast.data.glosses import GlossedDataset, GlossVocabulary
from slrfast.data.synthetic_sentences import SyntheticSentences
from slrfast.errors import DatasetError


@pytest.fixture(scope="module")
def signs():
    return SyntheticSigns(num_classes=2, clips_per_class=3)


def listed(**glosses):
    return {name.replace("_", "/"): Sentence(name.replace("_", "/"), "", tuple(g), "") for name, g in glosses.items()}


def test_a_vocabulary_numbers_glosses_from_one():
    vocabulary = GlossVocabulary.of(listed(a="BAB", b="", c="C").values())
    assert vocabulary.glosses == ["A", "B", "C"] and len(vocabulary) == 3 and "A" in vocabulary
    assert vocabulary.tokens("BXA") == [2, 1] and vocabulary.glosses_of([3, 1]) == ["C", "A"]


@pytest.mark.parametrize(
    ("glosses", "message"), [([], "at least one, got 0"), (["A", "A"], "got 'A'"), (["A", ""], "got ''")]
)
def test_vocabularies_that_are_none(glosses, message):
    with pytest.raises(ValueError, match=f"^GlossVocabulary: glosses must .*{message}"):
        GlossVocabulary(glosses)


def test_tokens_come_with_clips_and_batches(signs):
    sentences = listed(sign00_000="AB", sign00_002="", sign01_001="BXXYA", lost="A")
    data = GlossedDataset(signs, sentences, GlossVocabulary("AB"))
    assert data.names == ["sign00/000", "sign00/002", "sign01/001"]
    assert data.references == [("A", "B"), (), ("B", "X", "X", "Y", "A")]
    batch = data.batch([2, 0, 1])
    assert batch.tokens.tolist() == [[2, 1], [1, 2], [0, 0]] and batch.token_lengths.tolist() == [2, 2, 0]
    assert batch.xy.equal(signs.batch([4, 0, 2]).xy) and data[2].tokens.tolist() == [2, 1]
    assert data.notes == [
        "3 of 6 clips are not in this list of sentences",
        "1 of 4 sentences have no clip: 'lost'",
        "1 sentences have no glosses: 'sign00/002'",
        "3 of 7 glosses are outside the vocabulary, 2 different: 'X', 'Y'",
    ]
    loaded = next(iter(DataLoader(data, 3, collate_fn=PoseBatch.collate)))
    assert loaded.token_lengths.tolist() == [2, 0, 2]


def test_names_match_without_folders_and_in_stores(signs, tmp_path):
    store = pack(signs, tmp_path / "store")
    sentences = {name: row._replace(name=name) for name, row in listed(sign01_002="B").items()}
    data = GlossedDataset(store, sentences, GlossVocabulary("AB"))
    assert data.names == ["sign01/002"] and data.batch([0]).tokens.tolist() == [[2]]
    whole = GlossedDataset(store, listed(**{n.replace("/", "_"): "AB" for n in store.names}), GlossVocabulary("AB"))
    part = whole.subset([5, 1])
    assert whole.notes == [] and part.names == ["sign01/002", "sign00/001"] and len(part.references) == 2


def test_what_a_clip_is_made_of_changes_with_its_glosses(signs):
    made = [
        GlossedDataset(signs, listed(sign00_000=glosses), GlossVocabulary(known)).made_of
        for glosses, known in (("AB", "AB"), ("AB", "AB"), ("BA", "AB"), ("AB", "BA"))
    ]
    assert made[0] == made[1] and len({each["glosses"] for each in made}) == 3


def test_no_sentence_belongs_to_any_clip(signs):
    with pytest.raises(DatasetError, match="no sentence belongs to any clip; sentences are of 'x', clips are 'sign00/"):
        GlossedDataset(signs, listed(x="A"), GlossVocabulary("A"))


def test_synthetic_sentences_are_signs_behind_each_other():
    data = SyntheticSentences(6, 3, least=1, most=3, seed=2, noise=0.0)
    assert data.names == [*data.sentences] and len(set(data.groups)) == 4
    signs = SyntheticSigns(3, 8, 4, 2, noise=0.0)
    for name, length, group in zip(data.names, data.lengths, data.groups, strict=True):
        glosses = data.sentences[name].glosses
        assert 1 <= len(glosses) <= 3 and set(glosses) <= set(signs.class_names)
        mine = [clip.num_frames for clip in signs.clips if clip.group == group]
        assert min(mine) * len(glosses) <= length <= max(mine) * len(glosses)
    again = SyntheticSentences(6, 3, least=1, most=3, seed=2, noise=0.0)
    assert again.sentences == data.sentences and again[3].xy.equal(data[3].xy)
    assert SyntheticSentences(2, 3, step=2, seed=2).lengths < SyntheticSentences(2, 3, seed=2).lengths
