"""What a run takes, and which run fits a machine, before it starts."""
