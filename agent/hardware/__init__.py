"""What the host has, one file a vendor; all return the same inventory."""
