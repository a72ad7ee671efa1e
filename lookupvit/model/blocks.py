"""Where `LookupViTBlock` was before; saved configurations name it here, in FSDP's wrapping policy."""

from lookupvit.model.block import LookupViTBlock

__all__ = ["LookupViTBlock"]
