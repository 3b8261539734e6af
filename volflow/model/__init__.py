"""Networks: loading and saving them safely, their digests, and the built-in U-Net."""
