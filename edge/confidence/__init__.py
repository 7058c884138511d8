"""How sure an answer is: signals read for free, and the calibration that turns them into odds."""
