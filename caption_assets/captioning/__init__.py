"""Frames to captions: prompts, frame budget, the engine and the stages."""
