"""One clip of video: container, timestamps, decoding, colours and frames."""
