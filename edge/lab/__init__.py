"""Work done beside the running product: training heads and measuring them."""
