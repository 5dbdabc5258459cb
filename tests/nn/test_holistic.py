import pytest
import torch

from slrfast import graphs
from slrfast.nn import HolisticEmbedding

GROUPS = {
    75: ("left_hand", "right_hand", "trunk", "face", "mouth"),
    79: ("left_hand", "right_hand", "body", "face", "mouth"),
}


@pytest.mark.parametrize("keypoints", [75, 79])
@pytest.mark.parametrize("channels", [2, 3])
def test_every_group_moves_its_own_share_of_the_vectors(keypoints, channels):
    torch.manual_seed(0)
    embed = HolisticEmbedding(keypoints, dim=8, gcn_channels=(4, 4, 8, 8, 8), in_channels=channels).eval()
    x = torch.rand(3, keypoints, channels)
    with torch.no_grad():
        before = torch.cat(embed(x), -1)
        for place, name in enumerate(GROUPS[keypoints]):
            changed = x.clone()
            changed[:, graphs.layout(keypoints).parts[name]] += torch.rand(1, 1, channels)
            moved = (torch.cat(embed(changed), -1) != before).any(0).view(5, 8).any(1)
            assert moved.tolist() == [i == place for i in range(5)], name


def test_hands_share_a_network_and_packed_frames_are_those_of_clips():
    torch.manual_seed(0)
    embed = HolisticEmbedding(79, dim=8, gcn_channels=(4, 4, 8, 8, 8)).eval()
    parts = graphs.layout(79).parts
    x = torch.rand(2, 5, 79, 2)
    manual, non_manual = embed(x)
    swapped = x.clone()
    swapped[:, :, parts["left_hand"]], swapped[:, :, parts["right_hand"]] = (
        x[:, :, parts["right_hand"]], x[:, :, parts["left_hand"]],
    )  # fmt: skip
    other = embed(swapped)[0]
    torch.testing.assert_close(other[..., :8], manual[..., 8:16])
    torch.testing.assert_close(other[..., 8:16], manual[..., :8])
    for packed, padded in zip(embed(x.flatten(0, 1)), (manual, non_manual), strict=True):
        torch.testing.assert_close(packed.view_as(padded), padded)


def test_other_layouts_are_refused():
    with pytest.raises(ValueError, match="HolisticEmbedding: keypoints must be 75 or 79, got 49"):
        HolisticEmbedding(49)
