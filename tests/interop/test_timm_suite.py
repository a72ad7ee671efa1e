"""timm's own tests of models, for our names: `LOOKUPVIT_TIMM_TESTS=.../pytorch-image-models/tests pytest THIS_FILE`.

The file that the variable leads to is timm's, of the version that is installed; its source distribution has it.
"""

import importlib.util
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lookupvit.interop.timm_registry  # noqa: F401

FOLDER = os.environ.get("LOOKUPVIT_TIMM_TESTS")
NAMES = ("lookupvit_tiny_patch16_224", "lookupvit_tiny_patch4_32")
# Those that timm runs for its ViT and that take no weights from the network. torch.jit.script, which torch has
# deprecated, is not among them: our layers choose their way by the shapes of their inputs.
TESTS = (
    "forward",
    "backward",
    "default_cfgs_non_std",
    "forward_features",
    "forward_intermediates_features",
    "forward_intermediates",
    "forward_fx",
    "backward_fx",
)
OPTIONS = {"batch_size": 2, "cfg_device": "meta"}

pytestmark = pytest.mark.skipif(FOLDER is None, reason="LOOKUPVIT_TIMM_TESTS names no folder with timm's tests")


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    path = Path(FOLDER) / "test_models.py"
    spec = importlib.util.spec_from_file_location("timm_test_models", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest.mark, "_config", None)  # its markers are not ours
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("test", TESTS)
def test_it_passes(test: str, name: str, suite: ModuleType) -> None:
    function = getattr(suite, f"test_model_{test}")
    wanted = inspect.signature(function).parameters
    given: dict[str, Any] = {"model_name": name, **{key: value for key, value in OPTIONS.items() if key in wanted}}
    function(**given)
