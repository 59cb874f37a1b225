"""How fast the stages are, against what limits them."""
