"""tomosec."""
