"""Image sources, decoding, labels and the prepared dataset."""
