"""Frames to captions: prompts, frame budget, the engine and the stages."""

from caption_assets.captioning.torch_builds import install

install()  # here, because many modules of this package import vLLM or transformers, and these their libraries
