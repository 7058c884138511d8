"""What alembic runs: the migrations, on the connection and inside the transaction it is given."""

from alembic import context

from edge_sync.store.schema import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables,
    render_as_batch=True,
)
context.run_migrations()
