"""The fleet's side of edge: hub, gateway and device agent. Imports edge; edge never imports this."""
