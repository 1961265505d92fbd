"""Side by side with peers, in one run on one machine. Peers are imported only here, each in a process of its own."""
