"""The hub's database: tables, migrations, and one way to reach SQLite and PostgreSQL."""
