"""The named sizes of image models, as plain data: which there are can be said without building one."""

SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
# patch, native image size, default compressed size, sizes offered
SHAPES = (
    (16, 224, (5, 5), tuple(SIZES)),
    (16, 384, (5, 5), tuple(SIZES)),
    (4, 32, (3, 3), ("tiny", "small")),
    (2, 32, (5, 5), ("tiny", "small")),
)


def image_models(family: str) -> dict[str, dict]:
    """Names of a family of image models and the arguments of each, `compressed_size` included."""
    return {
        f"{family}_{size}_patch{patch}_{img_size}": {
            "patch_size": patch,
            "img_size": img_size,
            **SIZES[size],
            "compressed_size": compressed_size,
        }
        for patch, img_size, compressed_size, sizes in SHAPES
        for size in sizes
    }
