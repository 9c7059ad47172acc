"""How the public names are used and what their types come out as: read by mypy and pyright, never run."""
