"""What of isolation this host can give, tried: for boxes of a server with root, and without."""
