"""What an interactive viewer is given: the appearance of volumes, a link, a server, a script."""
