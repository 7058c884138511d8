"""Money of the fleet at the hub: caps and rights in tables, and what the gateways count."""
