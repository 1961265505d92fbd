"""One file a command; each reads its options, calls the rooms, and prints."""
