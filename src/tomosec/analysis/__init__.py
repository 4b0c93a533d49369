"""Networks that read reconstructed images, and the one way to train them. Importing this package loads no torch."""
