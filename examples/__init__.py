"""Short programs on top of this project; read them first."""
