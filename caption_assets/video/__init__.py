"""One clip: container, probe, timestamps, windows, decoding, colors and previews."""
