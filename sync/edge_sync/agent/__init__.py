"""The device's side of a fleet: joins it, keeps its policy current, reports what it did."""
