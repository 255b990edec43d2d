"""Other projects' ways of storing demonstrations, one module each."""
