"""What must hold on every device; the tests call these functions too."""
