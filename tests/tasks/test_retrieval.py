"""Tiles give what the whole computation gives; metrics by hand; what does not fit is refused in one sentence."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from slrfast import ops
from slrfast.tasks.retrieval import retrieval_metrics, retrieval_ranks, text_numbers
from slrfast.tasks.row_sets import RowSets, nearest, similarity_matrix


def row_sets(count, shortest, longest, seed, dim=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    rows = F.normalize(torch.randn(int(lengths.sum()), dim, generator=generator), dim=-1)
    return RowSets(rows.to(dtype), F.pad(lengths.cumsum(0), (1, 0)))


SIGNS, TEXTS = row_sets(41, 0, 9, 0), row_sets(57, 0, 6, 1)  # some without rows


def whole(signs, texts, row_temperature=1.0):
    """All scores at once."""
    (rows, present), (words, there) = (sets.pad(torch.arange(len(sets))) for sets in (signs, texts))
    return ops.sign_text_similarity(rows, words, present, there, row_temperature=row_temperature)


class TestTiles:
    @pytest.mark.parametrize("tile_rows", [1, 7, 60, 4096])
    def test_matrix_is_that_of_all_scores_at_once(self, tile_rows):
        found = similarity_matrix(SIGNS, TEXTS, row_temperature=0.1, tile_rows=tile_rows)
        torch.testing.assert_close(found, whole(SIGNS, TEXTS, 0.1), atol=1e-6, rtol=0)
        assert (found[SIGNS.lengths == 0] == 0).all() and found.any()

    @pytest.mark.parametrize("tile_rows", [1, 7, 60, 4096])
    @pytest.mark.parametrize("gallery_of", ["signs", "texts"])
    def test_nearest_are_the_first_of_the_sorted_row(self, tile_rows, gallery_of):
        """Of equal scores, which empty sets have here, the lowest position comes first."""
        queries, gallery = (TEXTS, SIGNS) if gallery_of == "signs" else (SIGNS, TEXTS)
        matrix = similarity_matrix(SIGNS, TEXTS, tile_rows=tile_rows)
        matrix = matrix.T if gallery_of == "signs" else matrix
        for k in (1, 5, len(gallery)):
            found = nearest(queries, gallery, k, gallery_of=gallery_of, tile_rows=tile_rows)
            scores, positions = matrix.sort(dim=1, descending=True, stable=True)
            assert torch.equal(found.scores, scores[:, :k]) and torch.equal(found.positions, positions[:, :k])

    def test_bfloat16_and_mixed_dtypes(self):
        """Exact scores of the rounded rows."""
        signs, texts = row_sets(9, 1, 5, 2, dtype=torch.bfloat16), row_sets(8, 1, 5, 3, dtype=torch.float16)
        wide = [RowSets(sets.rows.double(), sets.offsets) for sets in (signs, texts)]
        found = similarity_matrix(signs, texts, tile_rows=9)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), whole(*wide), atol=1e-6, rtol=0)

    def test_tiles_cover_all_sets_once_and_pad_little(self):
        sets = row_sets(500, 1, 30, 4)
        tiles = sets.tiles(256)
        assert sorted(itertools.chain(*(tile.tolist() for tile in tiles))) == list(range(500))
        padded = sum(len(tile) * int(sets.lengths[tile].max()) for tile in tiles)
        assert padded < 1.1 * len(sets.rows) and all(len(tile) * int(sets.lengths[tile].max()) <= 256 for tile in tiles)
        assert len(row_sets(3, 9, 9, 5).tiles(4)) == 3  # a set that is longer than a tile is one

    def test_nothing_to_compare(self):
        none = RowSets(torch.zeros(0, 8), torch.zeros(1, dtype=torch.int64))
        assert similarity_matrix(none, TEXTS).shape == (0, 57) and similarity_matrix(SIGNS, none).shape == (41, 0)
        assert nearest(none, TEXTS, 2, gallery_of="texts").positions.shape == (0, 2)
        empty = RowSets(torch.zeros(0, 8), torch.zeros(4, dtype=torch.int64))
        assert similarity_matrix(empty, TEXTS).eq(0).all()

    def test_signed_scores_are_ordered(self):
        gallery = RowSets(torch.tensor([[-0.5], [0.0], [-1.0], [0.25], [0.0], [-0.0]]), torch.arange(7))
        found = nearest(RowSets(torch.ones(1, 1), torch.tensor([0, 1])), gallery, 6, gallery_of="texts")
        assert found.positions.tolist() == [[3, 1, 4, 5, 0, 2]]
        assert found.scores.tolist() == [[0.25, 0, 0, 0, -0.5, -1]]


class TestRowSets:
    def test_padded_and_back(self):
        rows, present = SIGNS.pad(torch.arange(len(SIGNS)))
        again = RowSets.of_padded(rows, present)
        assert torch.equal(again.rows, SIGNS.rows) and torch.equal(again.offsets, SIGNS.offsets)

    def test_selected_joined_and_averaged(self):
        some = RowSets.cat([SIGNS.select(torch.tensor([5, 2])), SIGNS.select(torch.tensor([8]))])
        means = torch.stack(
            [SIGNS.rows[a:b].sum(0) / max(1, b - a) for a, b in itertools.pairwise(SIGNS.offsets.tolist())]
        )
        torch.testing.assert_close(some.means(), means[[5, 2, 8]])

    @pytest.mark.parametrize(
        ("rows", "offsets", "message"),
        [
            (torch.eye(3), [0, 2], r"offsets must rise from 0 to the 3 frames, got \[0, 2\]"),
            (torch.eye(3), [0, 2, 1, 3], "offsets must rise"),
            (torch.eye(3), [1, 3], "offsets must rise"),
            (torch.zeros(3), [0, 3], r"rows must have shape \[S, D\]"),
        ],
    )
    def test_wrong_offsets(self, rows, offsets, message):
        with pytest.raises(ValueError, match=message):
            RowSets(rows, torch.tensor(offsets))

    def test_wrong_dtypes(self):
        with pytest.raises(TypeError, match=r"rows must be float64, float32, bfloat16 or float16"):
            RowSets(torch.eye(2).int(), torch.tensor([0, 2]))
        with pytest.raises(TypeError, match=r"offsets must be torch.int64"):
            RowSets(torch.eye(2), torch.tensor([0, 2]).int())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: similarity_matrix(SIGNS, row_sets(2, 1, 2, 0, dim=9)),
            r"texts must have shape \[words, D\] with D = 8",
        ),
        (lambda: similarity_matrix(SIGNS, TEXTS, tile_rows=0), r"tile_rows must be in \[1, 16777216\], got 0"),
        (lambda: similarity_matrix(SIGNS, TEXTS, row_temperature=0.0), "row_temperature must be finite and > 0, got 0"),
        (lambda: nearest(SIGNS, TEXTS, 58, gallery_of="texts"), r"nearest: k must be in \[1, 57\], got 58"),
        (
            lambda: nearest(SIGNS, TEXTS, 1, gallery_of="words"),
            "gallery_of must be one of 'signs', 'texts', got 'words'",
        ),
    ],
)
def test_wrong_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_nan_among_scores_is_named():
    spoilt = RowSets(TEXTS.rows.clone(), TEXTS.offsets)
    spoilt.rows[int(TEXTS.offsets[7])] = float("nan")
    item = int((TEXTS.offsets[1:] > TEXTS.offsets[7]).nonzero()[0])
    with pytest.raises(
        ValueError, match=rf"nearest: scores must hold no NaN, got NaN between query \d+ and item {item}"
    ):
        nearest(SIGNS, spoilt, 3, gallery_of="texts")


class TestMetrics:
    # three clips and three sentences; clip 2 has the same sentence as clip 0
    SCORES = torch.tensor([[0.9, 0.2, 0.1], [0.8, 0.5, 0.6], [0.3, 0.4, 0.7]])

    def test_hand_computed(self):
        """Text to clip, down the columns: places 1, 1, 1; clip to text, along the rows: 1, 3, 1."""
        found = retrieval_metrics(self.SCORES, torch.arange(3), torch.arange(3))
        assert found == pytest.approx(
            {
                "t2v_r1": 1.0, "t2v_r5": 1.0, "t2v_r10": 1.0, "t2v_median_rank": 1.0,
                "v2t_r1": 2 / 3, "v2t_r5": 1.0, "v2t_r10": 1.0, "v2t_median_rank": 1.0,
            }
        )  # fmt: skip

    def test_an_equal_sentence_counts_as_the_own(self):
        ids = text_numbers(["rain", "sun", "rain"])
        scores = torch.tensor([[0.1, 0.5, 0.9], [0.6, 0.7, 0.2], [0.8, 0.9, 0.3]])
        ranks = retrieval_ranks(scores, ids, ids)
        # clip 0 finds its sentence as clip 2's; clip 2 finds it as clip 0's, behind "sun"
        assert ranks.expected().tolist() == [1, 1, 2]
        # sentence 0 by clip 2, sentence 1 behind clip 2, sentence 2 by clip 0
        assert retrieval_ranks(scores.T, ids, ids).expected().tolist() == [1, 2, 1]

    def test_more_clips_than_sentences(self):
        found = retrieval_metrics(torch.eye(2).repeat_interleave(3, 0), torch.arange(6) // 3, torch.arange(2))
        assert (found["t2v_r1"], found["v2t_r1"], found["v2t_median_rank"]) == (1, 1, 1)

    def test_median_of_an_even_number_is_between_the_middle_two(self):
        scores = torch.eye(4)
        scores[2, 0] = scores[3, :3] = 2.0  # places 1, 1, 2, 4
        assert retrieval_metrics(scores, torch.arange(4), torch.arange(4))["v2t_median_rank"] == 1.5

    @pytest.mark.parametrize(("wrong", "right", "above"), [(3, 1, 0), (2, 2, 1), (5, 3, 2), (0, 2, 4), (1, 1, 0)])
    def test_a_tie_is_worth_what_random_orders_give(self, wrong, right, above):
        scores = torch.tensor([[2.0] * above + [1.0] * (wrong + right) + [0.0] * 2])
        correct = [0] * above + [0] * wrong + [1] * right + [1, 0]
        ranks = retrieval_ranks(scores, torch.tensor([1]), torch.tensor(correct))
        assert [part.item() for part in ranks] == [above, wrong, right]
        tied = [0] * wrong + [1] * right
        places = [above + order.index(1) + 1 for order in itertools.permutations(tied)]
        assert ranks.expected().item() == pytest.approx(sum(places) / len(places))
        for k in range(1, len(correct) + 1):
            assert ranks.hits(k).item() == pytest.approx(sum(place <= k for place in places) / len(places))

    def test_constant_scores_are_chance(self):
        found = retrieval_metrics(torch.zeros(20, 20), torch.arange(20), torch.arange(20))
        assert [found["t2v_r1"], found["v2t_r10"], found["t2v_median_rank"]] == pytest.approx([1 / 20, 1 / 2, 10.5])

    def test_infinite_scores_are_ranked(self):
        scores = torch.tensor([[-torch.inf, torch.inf], [-torch.inf, -torch.inf]])
        assert retrieval_ranks(scores, torch.tensor([1, 0]), torch.tensor([0, 1])).expected().tolist() == [1, 1.5]

    def test_in_parts_as_in_one(self, monkeypatch):
        scores = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
        ids = torch.arange(9) % 7, torch.arange(7)
        expected = retrieval_ranks(scores, *ids)
        monkeypatch.setattr("slrfast.tasks.retrieval._CHUNK", 14)
        assert all(torch.equal(a, b) for a, b in zip(retrieval_ranks(scores, *ids), expected, strict=True))

    @pytest.mark.parametrize(
        ("scores", "queries", "gallery", "message"),
        [
            (torch.zeros(0, 2), [], [0, 1], "similarity must have at least one query, got 0"),
            (torch.zeros(2, 2), [0, 5], [0, 1], "hold a correct item for every query, got none for query 1"),
            (torch.zeros(1, 0), [0], [], "got none for query 0"),
            (torch.full((1, 1), torch.nan), [0], [0], "similarity must hold no NaN"),
            (torch.zeros(2, 2), [0], [0, 1], r"query_ids must have shape \[Q\] with Q = 2, got \[1\]"),
        ],
    )  # fmt: skip
    def test_wrong_input(self, scores, queries, gallery, message):
        ids = (torch.tensor(values, dtype=torch.int64) for values in (queries, gallery))
        with pytest.raises(ValueError, match=message):
            retrieval_ranks(scores, *ids)
