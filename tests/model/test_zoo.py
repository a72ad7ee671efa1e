"""Named models."""

import pytest
import torch

from lookupvit import create_model, list_models


@pytest.mark.parametrize("name", [name for name in list_models() if "vivit" not in name])
def test_every_name_builds_and_has_its_sizes(name):
    with torch.device("meta"):
        model = create_model(name, depth=1, num_classes=3)
        patch, size = name.split("_patch")[1].split("_")
        assert model.patch_size == (int(patch),) * 2 and model.img_size == (int(size),) * 2
        assert model(torch.empty(2, 3, *model.img_size)).shape == (2, 3)


def test_every_lookupvit_has_its_vit():
    assert [n.removeprefix("lookupvit_") for n in list_models("lookupvit_*")] == [
        n.removeprefix("vit_") for n in list_models("vit_*")
    ]


def test_unknown_names_and_arguments_list_the_valid_ones():
    with pytest.raises(ValueError, match="did you mean lookupvit_base_patch16_224"):
        create_model("lookupvit_bas_patch16_224")
    with pytest.raises(ValueError, match="known: lookupvit_base_patch16_224"):
        create_model("resnet")
    with pytest.raises(ValueError, match=r"vit_tiny_patch4_32 takes no argument 'reuse' \(only LookupViT has it\)"):
        create_model("vit_tiny_patch4_32", reuse="transpose")
    with pytest.raises(ValueError, match=r"takes no argument 'embed_dims'.*known are img_size"):
        create_model("lookupvit_tiny_patch4_32", embed_dims=3)
