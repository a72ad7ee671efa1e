"""ToMe against loops over tokens, and against timm where nothing merges."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from lookupvit.bench.tome import ToMe, match_tokens, merge_tokens
from lookupvit.model.flops import count_call_macs


def naive_merge(x, sizes, metric, r):
    """One image at a time, one token at a time; x (N, D), sizes (N,), metric (N, C)."""
    n = len(x)
    edges = []
    for a in range(0, n, 2):
        cosines = [torch.dot(metric[a], metric[b]) / metric[a].norm() / metric[b].norm() for b in range(1, n, 2)]
        best = max(range(len(cosines)), key=lambda i: cosines[i])
        edges.append((float(cosines[best]), a, 2 * best + 1))
    edges.sort(reverse=True)
    sums = {i: x[i] * sizes[i] for i in range(n)}
    counts = {i: sizes[i] for i in range(n)}
    for _, a, b in edges[:r]:
        sums[b], counts[b] = sums[b] + sums.pop(a), counts[b] + counts.pop(a)
    order = [a for _, a, _ in edges[r:]] + list(range(1, n, 2))
    return torch.stack([sums[i] / counts[i] for i in order]), torch.stack([counts[i] for i in order])


@pytest.mark.parametrize(("n", "r"), [(8, 3), (9, 4), (7, 1), (6, 3)])
def test_merge_equals_loops(n, r):
    torch.manual_seed(n)
    x, metric = torch.randn(2, n, 5, dtype=torch.float64), torch.randn(2, n, 3, dtype=torch.float64)
    sizes = torch.randint(1, 5, (2, n, 1)).double()
    merged, new_sizes = merge_tokens(x, sizes, match_tokens(metric, r))
    assert merged.shape == (2, n - r, 5)
    for i in range(2):
        expected, expected_sizes = naive_merge(x[i], sizes[i, :, 0], metric[i], r)
        torch.testing.assert_close(merged[i], expected)
        torch.testing.assert_close(new_sizes[i, :, 0], expected_sizes)


def test_no_more_than_half_of_the_tokens_merge():
    matching = match_tokens(torch.randn(1, 7, 4), r=16)
    assert matching.source.shape == (1, 3) and matching.kept.shape == (1, 1)


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=2,
        num_classes=5,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    ).eval()


def test_without_merging_it_is_timms_vit():
    vit, images = small_vit(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ToMe(vit, 0)(images), vit(images))


def test_a_token_of_size_two_counts_as_two_tokens():
    attn = small_vit().blocks[0].attn
    a, b, c = torch.randn(3, 1, 1, 24)
    sizes = torch.tensor([2.0, 1.0, 3.0]).view(1, 3, 1)
    weighted, _ = ToMe._attend(attn, torch.cat([a, b, c], 1), sizes)
    spelled, _ = ToMe._attend(attn, torch.cat([a, a, b, c, c, c], 1), None)
    torch.testing.assert_close(weighted, spelled[:, [0, 2, 3]])


def test_operations_by_hand():
    # 16 tokens, D = 24, d = 12, r = 4: blocks see 16, 12, 8 tokens before and 12, 8, 4 after the merge
    model, image = ToMe(small_vit(), 4), torch.zeros(1, 3, 32, 32)
    expected = 16 * 3 * 8 * 8 * 24 + 24 * 5  # patches, classifier
    for before, after in ((16, 12), (12, 8), (8, 4)):
        expected += 4 * before * 24 * 24 + 2 * before * before * 24  # qkv and projection, attention
        expected += (before // 2) ** 2 * 12  # similarities
        expected += 8 * after * 24 * 24  # MLP
    with torch.no_grad():
        assert count_call_macs(lambda: model(image)) == expected


def test_identical_patches_stay_what_they_are():
    # all tokens alike but for nothing: merging them changes no mean, so the logits are those of the plain ViT
    vit = small_vit()
    torch.nn.init.zeros_(vit.pos_embed)
    images = torch.ones(1, 3, 32, 32)
    torch.testing.assert_close(ToMe(vit, 5)(images), vit(images))


def test_mistakes():
    with pytest.raises(ValueError, match="without class token"):
        ToMe(VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2), 1)
    with pytest.raises(ValueError, match="r=-1"):
        ToMe(small_vit(), -1)
