import pytest
import torch
from torch.nn.functional import softmax

from slrfast.tasks.fusion import EarlyFusion, late_fusion
from slrfast.tasks.score_files import ScoreFileError, Scores


def scores(names, *shape, seed=0, classes=()):
    return Scores.of(names, torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), classes)


class TestLate:
    def test_probabilities_are_summed_with_weights(self):
        one, two = scores("ab", 2, 3), scores("ab", 2, 3, seed=1)
        fused = late_fusion([one, two], weights=[0.25, 2])
        assert torch.allclose(fused.values, 0.25 * softmax(one.values, 1) + 2 * softmax(two.values, 1))
        assert torch.allclose(late_fusion([one, two], of="logits").values, one.values + two.values)
        assert fused.names == ("a", "b") and fused.class_names == ()

    def test_what_are_probabilities_already_stays(self):
        logits = scores("ab", 2, 3)
        ready = Scores(logits.names, softmax(scores("ab", 2, 3, seed=1).values, 1))
        fused = late_fusion([ready, logits])
        assert torch.allclose(fused.values, ready.values + softmax(logits.values, 1))
        assert torch.equal(late_fusion([ready, ready], of="logits").values, 2 * ready.values)
        with pytest.raises(
            ScoreFileError, match="holds probabilities, others logits; fuse them with of='probabilities'"
        ):
            late_fusion([logits, ready], of="logits")

    def test_clips_are_matched_by_name(self):
        one = scores(["x/a.npz", "x/b.npz"], 2, 3)
        two = scores(["b.mp4", "c.mp4", "a.mp4"], 3, 3, seed=1)
        fused = late_fusion([one, two], of="logits")
        assert torch.equal(fused.values, one.values + two.values[[2, 0]]) and fused.names == one.names

    def test_classes_are_matched_by_name(self):
        one, two = scores("a", 1, 3), scores("a", 1, 3, seed=1, classes=["x", "y", "z"])
        three = scores("a", 1, 3, seed=2, classes=["z", "x", "y"])
        fused = late_fusion([one, two, three], of="logits")
        assert torch.allclose(fused.values, one.values + two.values + three.values[:, [1, 2, 0]])
        assert fused.class_names == ("x", "y", "z")

    def test_a_class_that_is_ruled_out(self):
        one = Scores(("a",), torch.tensor([[0.0, float("-inf")]], dtype=torch.float64))
        two = scores("a", 1, 2)
        assert late_fusion([one, two], of="logits").values[0, 1] == float("-inf")
        assert torch.equal(late_fusion([one, two], of="logits", weights=[0, 1]).values, two.values)
        assert late_fusion([one, two]).values[0, 1] == softmax(two.values, 1)[0, 1]

    def test_parts_that_do_not_fit(self):
        one = scores(["a", "b", "c"], 3, 2, classes=["x", "y"])
        with pytest.raises(ScoreFileError, match="scores: has no scores for 2 of the 3 clips of scores: 'b', 'c'"):
            late_fusion([one, scores(["a"], 1, 2)])
        with pytest.raises(ScoreFileError, match="has scores of 3 classes, another part of 2"):
            late_fusion([one, scores("abc", 3, 3)])
        with pytest.raises(ScoreFileError, match="has scores of 3 classes, another part of 2"):
            late_fusion([scores("abc", 3, 2), scores("abc", 3, 3)])
        with pytest.raises(ScoreFileError, match="lacks classes that another part has: 'y'"):
            late_fusion([one, scores("abc", 3, 2, classes=["x", "q"])])

    @pytest.mark.parametrize(
        "options, message",
        [
            (dict(weights=[1]), r"weights must be 2 numbers, got \[1\]"),
            (dict(weights=[1, "2"]), "weights must be 2 numbers"),
            (dict(weights=[1, -1]), "weights must be finite and >= 0, got -1"),
            (dict(weights=[1, float("nan")]), "weights must be finite and >= 0, got nan"),
            (dict(weights=[0, 0]), "weights must not all be 0"),
            (dict(of="scores"), "of must be one of 'probabilities', 'logits', got 'scores'"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(ValueError, match=f"late_fusion: {message}"):
            late_fusion([scores("a", 1, 2), scores("a", 1, 2)], **options)

    def test_one_part(self):
        with pytest.raises(ValueError, match="late_fusion: parts must be two or more, got 1"):
            late_fusion([scores("a", 1, 2)])


class TestEarly:
    x = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]

    def test_sum_and_concatenation(self):
        assert torch.equal(EarlyFusion([4, 4], "sum")(self.x), self.x[0] + self.x[1])
        assert torch.equal(EarlyFusion([4, 4])(self.x), torch.cat(self.x, 1)) and EarlyFusion([4, 4]).width == 8
        assert sum(p.numel() for p in EarlyFusion([4, 4], "sum").parameters()) == 0

    def test_other_widths_are_projected(self):
        fusion = EarlyFusion([4, 6, 3], "sum", width=3).double()
        x = [self.x[0], torch.randn(5, 6).double(), torch.randn(5, 3).double()]
        first, second, last = fusion.projections
        assert isinstance(last, torch.nn.Identity) and first.weight.shape == (3, 4) and first.bias is None
        assert torch.allclose(fusion(x), x[0] @ first.weight.T + x[1] @ second.weight.T + x[2])

    def test_the_adaptive_average_starts_as_the_mean_and_learns_its_weights(self):
        fusion = EarlyFusion([4, 4], "adaptive").double()
        assert torch.allclose(fusion(self.x), (self.x[0] + self.x[1]) / 2)
        with torch.no_grad():
            fusion.gate[1] = torch.tensor([1.0, -2.0, 0.5, 0.0])
            fusion.offset[0] = 0.3
        score = torch.stack((torch.full((5,), 0.3).double(), self.x[1] @ fusion.gate[1]), 1)
        weight = score.exp() / score.exp().sum(1, keepdim=True)
        assert torch.allclose(fusion(self.x), weight[:, :1] * self.x[0] + weight[:, 1:] * self.x[1])

    def test_it_finds_the_stream_that_says_more(self):
        """The first stream says when it is empty; then only the second one tells the class."""
        torch.manual_seed(0)
        empty, label = torch.rand(512) < 0.5, (torch.rand(512) < 0.5).double()
        signal = (2 * label - 1)[:, None] * torch.tensor([[0.0, 1.0]])
        noise = torch.randn(512, 1) * torch.tensor([[0.0, 3.0]])
        one = torch.where(empty[:, None], noise, signal) + empty[:, None] * torch.tensor([[2.0, 0.0]])
        two = torch.where(empty[:, None], signal, noise)
        errors = {}
        for mode in ("sum", "adaptive"):
            torch.manual_seed(0)
            fusion, head = EarlyFusion([2, 2], mode), torch.nn.Linear(2, 1)
            solver = torch.optim.Adam([*fusion.parameters(), *head.parameters()], 0.05)
            for _ in range(200):
                solver.zero_grad()
                logit = head(fusion([one.float(), two.float()]))[:, 0]
                torch.nn.functional.binary_cross_entropy_with_logits(logit, label.float()).backward()
                solver.step()
            errors[mode] = float(((logit > 0) != (label > 0)).double().mean())
        assert errors["adaptive"] < 0.02 < 0.1 < errors["sum"]

    @pytest.mark.parametrize("mode", ["sum", "concat", "adaptive"])
    def test_gradients(self, mode):
        fusion = EarlyFusion([2, 3], mode).double()
        x = [torch.randn(2, width, dtype=torch.float64, requires_grad=True) for width in (2, 3)]
        torch.autograd.gradcheck(lambda *each: fusion(each), x)
        fusion(x).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in fusion.parameters())

    @pytest.mark.parametrize(
        "options, kind, message",
        [
            (dict(widths=[4]), ValueError, "widths must be two or more, got 1"),
            (dict(widths=[4, 0]), ValueError, r"widths must be in \[1, 1048576\], got 0"),
            (dict(widths=[4, 2.0]), TypeError, "widths must be an integer, got float"),
            (dict(widths=[4, 4], mode="mean"), ValueError, "mode must be one of 'sum', .*, got 'mean'"),
            (dict(widths=[4, 4], mode="concat", width=4), ValueError, "width must be None for mode 'concat', got 4"),
            (dict(widths=[4, 4], mode="sum", width=0), ValueError, r"width must be in \[1, 1048576\], got 0"),
        ],
    )  # fmt: skip
    def test_wrong_options(self, options, kind, message):
        with pytest.raises(kind, match=f"EarlyFusion: {message}"):
            EarlyFusion(**options)

    def test_wrong_features(self):
        fusion = EarlyFusion([4, 6])
        with pytest.raises(ValueError, match="features must be 2 tensors, got 1"):
            fusion([torch.ones(2, 4)])
        with pytest.raises(ValueError, match=r"features1 must have shape \[B, 6\], got \[2, 4\]"):
            fusion([torch.ones(2, 4), torch.ones(2, 4)])
        with pytest.raises(ValueError, match=r"features1 must have shape \[B, 6\] with B = 2, got \[1, 6\]"):
            fusion([torch.ones(2, 4), torch.ones(1, 6)])
