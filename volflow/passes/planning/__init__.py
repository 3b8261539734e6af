"""What passes of training cost, forward and backward, and the choice among them."""
