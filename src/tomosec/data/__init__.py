"""Where images come from: the phantom, readers for what users hold, and splits by patient. Importing this loads no torch."""
