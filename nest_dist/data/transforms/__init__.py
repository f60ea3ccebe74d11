"""What is done to an example on the host, from its bytes to a uint8 image."""
