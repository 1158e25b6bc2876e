"""`trivec doctor`: what on this machine would keep `trivec serve` from serving, and the command that mends it."""
