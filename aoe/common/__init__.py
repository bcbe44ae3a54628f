"""What the two command-line programs share."""
