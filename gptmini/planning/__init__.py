"""Before a run starts: what it will take, and which config fits this machine."""
