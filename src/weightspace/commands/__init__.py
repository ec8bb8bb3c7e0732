"""What each command computes, as data; it neither draws nor prints."""
