"""What a detector costs beyond its backbone, in closed form: pyramid and heads, at a fixed number of regions.

Cutting regions out of the maps, proposals and suppression are not counted, as no interpolation or sorting is.
"""

from collections.abc import Iterable
from math import prod

from torch import nn

from lookupvit.model.dense.detector import Detector


def layer_macs(layers: Iterable[nn.Module], cells: int) -> int:
    """Multiply-adds of convolutions, deconvolutions and poolings by 2, and linear layers, one after the other.

    Args:
        layers: In order; what has no matrix product counts as nothing.
        cells: Cells of the map, for each image or region, that goes in.
    """
    total = 0
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            total += layer.weight.numel() * cells
            cells *= 4
        elif isinstance(layer, nn.MaxPool2d):
            cells //= 4
        elif isinstance(layer, nn.Conv2d):
            total += layer.weight.numel() * cells
        elif isinstance(layer, nn.Flatten):
            cells = 1
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()
    return total


def detector_head_macs(model: Detector, img_size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of "pyramid" and "heads" for an image of (height, width) pixels, which is padded first.

    The heads count at 1000 proposals and 100 detections, torchvision's most in evaluation, or what `detector_args` say.
    """
    pixels, backbone = prod(model.padded(img_size)), model.net.backbone
    levels = backbone.pyramid.levels
    pyramid = sum(layer_macs(level, pixels // backbone.pyramid.stride**2) for level in levels)
    cells = sum(pixels // stride**2 for stride in backbone.strides)
    if model.detector == "fcos":
        return {"pyramid": pyramid, "heads": layer_macs(model.net.head.modules(), cells)}
    heads = layer_macs(model.net.rpn.head.modules(), cells)
    for count, pool, layers, predictor in model.regions(training=False):
        heads += count * layer_macs([*layers.modules(), *predictor.modules()], prod(pool.output_size))
    return {"pyramid": pyramid, "heads": heads}


def regions_counted(model: Detector) -> str:
    """The fixed number of regions that a count of a detector's heads holds for, as text."""
    if model.detector == "fcos":
        return "counted at each cell of each map"
    (proposals, *_), *masks = model.regions(training=False)
    found = f" and {masks[0][0]} detections" if masks else ""
    return f"counted at {proposals} proposals{found} per image"
