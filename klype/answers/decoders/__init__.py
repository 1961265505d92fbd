"""Decoders that can go back: what is spent beyond one plain answer, to find a better one."""
