"""Inference on the device that knows when it does not know, and spends money only there."""
