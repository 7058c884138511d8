"""What the hub does, over its database and its keys."""
