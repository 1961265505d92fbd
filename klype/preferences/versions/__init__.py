"""How the tables came to be, one file a step; each is given alembic's operations."""
