"""The migrations of the hub's database; numbered, run by alembic, never changed once shipped."""
