"""The configuration of a tiny classifier on a tiny tree, shared by the tests of the command line."""

from pathlib import Path

CONFIG = """
trainer: {{accelerator: cpu, max_epochs: 1, log_every_n_steps: 1, enable_progress_bar: false}}
model:
  class_path: ClassificationTask
  init_args:
    name: lookupvit_tiny_patch16_224
    compressed_size: [2, 2]
    args: {{embed_dim: 32, depth: {depth}, num_heads: 2, patch_size: 8}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 4, num_workers: 0}}
output_dir: {output}
name: tiny
"""


def write_config(folder: Path, root: Path, output: str, depth: int) -> Path:
    """``folder/tiny.yaml``, which trains on ``root`` and writes to ``folder/output``."""
    (folder / "tiny.yaml").write_text(CONFIG.format(root=root, output=folder / output, depth=depth))
    return folder / "tiny.yaml"
