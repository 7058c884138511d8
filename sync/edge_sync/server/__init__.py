"""The hub's HTTP side: what devices, admins' browsers and monitoring talk to."""
