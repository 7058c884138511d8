"""The fleet's side of edge. Imports edge; edge never imports this."""
