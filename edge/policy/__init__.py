"""What a policy may say, as typed values; see the modules."""
