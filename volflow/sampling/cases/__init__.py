"""Cases: named arrays on one grid, and folders of them."""
