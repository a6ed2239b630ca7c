"""A drop-in ``QwenVL`` with NeMo Curator's signature, on this project's engine."""

from caption_assets.qwen_vl.call import CaptionsIncomplete
from caption_assets.qwen_vl.model import QwenVL

__all__ = ["CaptionsIncomplete", "QwenVL"]
