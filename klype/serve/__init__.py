"""Models behind OpenAI's protocol: one engine a model, shared by all clients, behind one guard."""
