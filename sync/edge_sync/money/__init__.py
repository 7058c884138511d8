"""Money of a fleet as rules over plain values: rights to spend, and how they are shared out."""
