"""Arguments that all DataModules of images and videos have."""

from typing import Any


def check_arguments(data: Any, least: dict[str, int]) -> None:
    """Looks at the attributes `img_size`, `num_workers`, `val_fraction` where there is one, and those of `least`.

    Args:
        data: A DataModule.
        least: The smallest value of each of some numbers, such as `{"batch_size": 1}`.

    Raises:
        ValueError: One line that names the option and its limits.
    """
    if len(data.img_size) != 2 or min(data.img_size) < 1:
        raise ValueError(f"data.img_size needs one positive number or (height, width), got {data.img_size}")
    for name, smallest in least.items():
        if getattr(data, name) < smallest:
            raise ValueError(f"data.{name} must be at least {smallest}, got {getattr(data, name)}")
    if (data.num_workers or 0) < 0:
        raise ValueError(f"data.num_workers must not be negative, got {data.num_workers}; 0 loads in this process")
    if not 0 <= getattr(data, "val_fraction", 0) < 1:
        raise ValueError(f"data.val_fraction must lie in [0, 1), got {data.val_fraction}")
