"""Where layers come from: the golden made of this host, and root file systems that a user brings."""
