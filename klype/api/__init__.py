"""The public surface: what ``import klype`` offers, and what command line, server and studio are built on."""
