"""One Linux host: how boxes are made, run and thrown away. No HTTP, no database."""
