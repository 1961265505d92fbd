"""Learning from one's own mistakes: what training can do against errors that make the next one likelier."""
