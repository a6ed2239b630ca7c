"""Exchange with annotation tools: captions as their tasks, and their decisions as corrections."""
