"""Networks: load and save them safely, tell them apart by digest, and the house U-Net."""
