"""The trainer's side: experts on other machines as modules, and the gate that chooses among them."""
