"""The embedded default: a toy world, its clips, and a tiny Qwen2.5-VL that captions it right."""
