"""The embedded sample: a toy world, its clips, and a tiny Qwen2.5-VL that captions them correctly."""
