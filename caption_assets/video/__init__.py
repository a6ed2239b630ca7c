"""One clip: container, probe, timestamps, windows, decoding, colours and previews."""
