"""`tidelog bench`."""
