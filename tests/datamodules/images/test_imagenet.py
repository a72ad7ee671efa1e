"""ImageNet's two layouts, its class names, and the development kit."""

import re
import sys

import numpy as np
import pytest
import torch
from conftest import TREE_CLASSES, write_image

from datamodules import ImageNetDataModule
from datamodules.images.names import imagenet_wnids, readable_names


def module(root, **options):
    return ImageNetDataModule(
        **{"root": str(root), "img_size": 32, "batch_size": 4, "num_workers": 0, "num_classes": None, **options}
    )


def test_the_thousand_classes():
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000
    assert wnids == sorted(wnids)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in wnids)
    names = readable_names(wnids)
    assert (names[0], names[1], names[207], names[999]) == ("tench", "goldfish", "golden retriever", "toilet tissue")
    assert len(set(names)) == 1000  # the two cranes and the two maillots are told apart
    assert names[134] == "crane (n02012849)"
    assert names[517] == "crane (n03126707)"


def test_num_classes_and_names_need_no_tree(tmp_path):
    data = ImageNetDataModule(root=str(tmp_path / "gone"))
    assert data.num_classes == 1000
    assert data.class_names[0] == "tench"


def test_prediction_needs_no_tree(tmp_path, image_tree):
    data = ImageNetDataModule(root=str(tmp_path / "gone"), predict_path=str(image_tree / "val"), num_workers=0)
    images, paths = next(iter(data.predict_dataloader()))
    assert images.shape == (6, 3, 224, 224)
    assert len(paths) == 6


def test_a_subset_says_how_to_use_it(image_tree):
    with pytest.raises(ValueError, match=r"data\.num_classes is 1000, .* has 3 class folders .*data\.num_classes=3"):
        module(image_tree, num_classes=1000).setup("fit")


@pytest.fixture
def flat_tree(new_tree):
    """``val/`` as it comes out of the archive: image k belongs to class ORDER[k - 1]; ids are not in sorted order."""
    for path in sorted((new_tree / "val").rglob("*.JPEG")):
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    for number in range(1, 5):
        write_image(new_tree / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", 32, 32, number)
    return new_tree


def write_devkit(folder, labels, wnid_of_id):
    """The two files of the development kit; ids without images (inner nodes of WordNet) are there too."""
    from scipy.io import savemat

    (folder / "data").mkdir(parents=True)
    (folder / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{label}\n" for label in labels))
    rows = np.array(
        [(number, wnid, "word", 0) for number, wnid in wnid_of_id.items()] + [(1001, "n00001740", "entity", 3)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")],
    )
    savemat(folder / "data" / "meta.mat", {"synsets": rows.reshape(-1, 1)})


@pytest.mark.parametrize("where", ["ILSVRC2012_devkit_t12", ".", "elsewhere"])
def test_a_flat_validation_folder(flat_tree, where):
    pytest.importorskip("scipy", reason="meta.mat is a MATLAB file")
    write_devkit(flat_tree / where, [3, 1, 2, 3], dict(zip((2, 3, 1), TREE_CLASSES, strict=True)))
    options = {"devkit": str(flat_tree / where)} if where == "elsewhere" else {}
    data = module(flat_tree, **options)
    data.setup("fit")
    # id 3 = TREE_CLASSES[1], id 1 = TREE_CLASSES[2], id 2 = TREE_CLASSES[0]
    images, labels = next(iter(data.val_dataloader()))
    assert labels.tolist() == [1, 2, 0, 1]
    # normalised once, like any other image
    data.predict_path = str(flat_tree / "val")
    torch.testing.assert_close(images, next(iter(data.predict_dataloader()))[0])


def test_a_ground_truth_of_another_length(flat_tree):
    pytest.importorskip("scipy", reason="meta.mat is a MATLAB file")
    write_devkit(flat_tree, [3, 1, 2, 3, 3], dict(zip((2, 3, 1), TREE_CLASSES, strict=True)))
    with pytest.raises(ValueError, match="holds 4 images, but the ground truth has 5 lines"):
        module(flat_tree).setup("fit")


def test_a_flat_validation_folder_without_the_devkit(flat_tree):
    with pytest.raises(FileNotFoundError, match=r"holds images and no class folders.*set data\.devkit") as error:
        module(flat_tree).setup("fit")
    assert "\n" not in str(error.value)


def test_without_scipy_the_line_says_so(flat_tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    (flat_tree / "data").mkdir()
    (flat_tree / "data" / "meta.mat").write_bytes(b"")
    (flat_tree / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    with pytest.raises(ValueError, match="needs scipy: pip install scipy, or sort val/ into one folder per wnid"):
        module(flat_tree).setup("fit")
