"""What a server costs."""
